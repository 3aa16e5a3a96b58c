"""Reading the course of the validation figures: which step is best, and when to stop early."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.plan import EarlyStoppingPlan
from finetune_trainer.errors import InvalidInputError

History = list[dict[str, Any]]
"""``log_history`` of the Trainer's state; checkpoints carry it, so a resumed run decides as one that never stopped."""


def find_best_step(history: History) -> int | None:
    """The trained step of the lowest validation loss, the first of equals; None when none was evaluated."""
    losses = [(entry["eval_loss"], entry["step"]) for entry in history if "eval_loss" in entry and entry["step"] > 0]
    # A NaN is neither more nor less than any other.
    return min([pair for pair in losses if math.isfinite(pair[0])], default=(0.0, None))[1]


def should_stop(history: History, stopping: EarlyStoppingPlan) -> bool:
    """Whether the last ``patience`` evaluations brought no improvement of more than ``min_delta``; the untrained
    model's counts as the first. A metric that ends in "loss" is to fall, any other to rise: transformers' rules."""
    sign = -1.0 if stopping.metric.endswith("loss") else 1.0
    best: float | None = None
    idle = 0
    for entry in history:
        if stopping.metric not in entry:
            continue
        value = sign * entry[stopping.metric]
        if best is None or value - best > stopping.min_delta:
            best, idle = value, 0
        else:
            idle += 1
    return idle >= stopping.patience


def describe_stop(stopping: EarlyStoppingPlan, step: int, planned: int) -> str:
    """Why the training ended before its last step, for a person."""
    return (
        f"stopped early at step {step} of {planned}: {stopping.metric} has not improved by more than "
        f"{stopping.min_delta:g} for {stopping.patience} evaluations"
    )


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Ends the training behind the evaluation that ``should_stop`` speaks of."""

    def __init__(self, stopping: EarlyStoppingPlan) -> None:
        self._stopping = stopping

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = metrics or {}
        if self._stopping.metric not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("eval_")))
            raise InvalidInputError(
                f"training.earlyStopping.metric {self._stopping.metric} is none of the evaluation's: use one of {known}"
            )
        if should_stop(state.log_history, self._stopping):
            control.should_training_stop = True
