"""The validation loss before the first step and after the last, from the Trainer's history where it is there."""

from typing import Any


class EvaluationAbandonedError(Exception):
    """The run has to stop; the evaluation is given up so that the next step can be saved in time."""


def loss_before(trainer: Any) -> float | None:
    """Validation loss before the first step; None without validation data. Survives resumes with the history."""
    history = trainer.state.log_history
    return next((entry["eval_loss"] for entry in history if "eval_loss" in entry and entry["step"] == 0), None)


def loss_after(trainer: Any) -> float | None:
    """Validation loss of the trained model; evaluates when the last step wasn't evaluated. None without validation data."""
    if trainer.eval_dataset is None:
        return None
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry:
            if entry["step"] == trainer.state.global_step:
                return float(entry["eval_loss"])
            break
    return float(trainer.evaluate()["eval_loss"])


def loss_at(trainer: Any, step: int) -> float:
    """Validation loss of a step that was evaluated."""
    history = trainer.state.log_history
    return float(
        next(entry["eval_loss"] for entry in reversed(history) if "eval_loss" in entry and entry["step"] == step)
    )


def training_loss(trainer: Any) -> float | None:
    """Mean loss over the last logging window."""
    return next((entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry), None)
