"""The checkpoint of the lowest validation loss: what a run with ``checkpoint.keepBest`` evaluates and exports."""

from pathlib import Path
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.marker import read_marker, verify_files
from finetune_trainer.distributed import Ranks
from finetune_trainer.errors import CheckpointUnusableError
from finetune_trainer.evaluate.course import find_best_step


def load_best(plan: TrainingPlan, trainer: Any, ranks: Ranks) -> int | None:
    """Put the best checkpoint's weights into the trained model; its step, None when the last weights are the best.

    Raises: CheckpointUnusableError when it is broken.
    """
    step = find_best_step(trainer.state.log_history)
    if not plan.checkpoint.keep_best or step in (None, trainer.state.global_step):
        return None
    folder = Path(plan.checkpoint.directory) / f"checkpoint-{step}"
    if problem := ranks.share(_find_problem(folder) if ranks.is_main else None):
        raise CheckpointUnusableError(
            f"{folder}, the best checkpoint, {problem}; set checkpoint.keepBest: false to export the last weights"
        )
    trainer.state.best_model_checkpoint = str(folder)
    trainer._load_best_model()
    return step


def _find_problem(folder: Path) -> str | None:
    try:
        verify_files(folder, read_marker(folder))
    except ValueError as error:
        return str(error)
    return None
