"""The checkpoint of the lowest validation loss: what a run with ``checkpoint.keepBest`` evaluates and exports."""

from pathlib import Path
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.resume import fetch_checkpoint, name_checkpoint, read_marker
from finetune_trainer.distributed import Ranks
from finetune_trainer.errors import CheckpointUnusableError
from finetune_trainer.evaluate.course import find_best_step
from finetune_trainer.store import Store


def load_best(plan: TrainingPlan, trainer: Any, ranks: Ranks) -> int | None:
    """Put the best checkpoint's weights into the trained model; its step, None when the last weights are the best.

    Raises: CheckpointUnusableError when it is broken.
    """
    step = find_best_step(trainer.state.log_history)
    if not plan.checkpoint.keep_best or step in (None, trainer.state.global_step):
        return None
    store = Store(plan.checkpoint.directory)
    problem = _fetch(store, plan, step) if ranks.is_local_main else None
    if ranks.any(problem is not None):
        raise CheckpointUnusableError(
            f"{name_checkpoint(step)} in {store.uri}, the best checkpoint, {ranks.share(problem)}; set "
            "checkpoint.keepBest: false to export the last weights"
        )
    trainer.state.best_model_checkpoint = str(Path(plan.checkpoint.folder) / name_checkpoint(step))
    trainer._load_best_model()
    return step


def _fetch(store: Store, plan: TrainingPlan, step: int) -> str | None:
    """What is wrong with it."""
    try:
        fetch_checkpoint(store, plan, read_marker(store, step))
    except ValueError as error:
        return str(error)
    return None
