"""Which checkpoint a run goes on from."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.marker import Marker, read_marker, verify_files
from finetune_trainer.errors import CheckpointUnusableError


@dataclass(frozen=True)
class ResumePoint:
    """A complete checkpoint of this run."""

    folder: Path
    marker: Marker


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders as (step, folder), newest first, complete or not."""
    found = []
    for path in directory.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def find_resume_point(plan: TrainingPlan, data_fingerprint: str, warn: Callable[[str], None]) -> ResumePoint | None:
    """The newest complete checkpoint that fits, None to start from the beginning.

    Broken ones, and those of another run, are passed over with a warning.

    Raises: CheckpointUnusableError when complete ones of this run exist and none fits: going on from the beginning
    would throw their work away, going on from them would not be the same training.
    """
    if plan.checkpoint.resume == "never":
        return None
    misfits = []
    for _, folder in list_checkpoints(Path(plan.checkpoint.directory)):
        try:
            marker = read_marker(folder)
            verify_files(folder, marker)
        except ValueError as error:
            warn(f"checkpoint {folder.name} {error}; passed over")
            continue
        if marker.run_id != plan.job.run_id:
            warn(f"checkpoint {folder.name} belongs to another run, {marker.run_id}; passed over")
            continue
        misfit = _describe_misfit(plan, data_fingerprint, marker)
        if misfit is None:
            return ResumePoint(folder, marker)
        misfits.append(f"{folder.name} {misfit}")
    if misfits:
        raise CheckpointUnusableError(
            f"no checkpoint in {plan.checkpoint.directory} can be resumed: {'; '.join(misfits)}. Restore the plan and "
            "data that they were made with, or set checkpoint.resume: never to start anew"
        )
    return None


def _describe_misfit(plan: TrainingPlan, data_fingerprint: str, marker: Marker) -> str | None:
    if marker.world_size != plan.parallelism.world_size:
        return f"was made by {marker.world_size} processes, now there are {plan.parallelism.world_size}"
    if marker.training_hash != plan.training_hash():
        return "was made with other model, dataset, method or training settings"
    if marker.data_fingerprint != data_fingerprint:
        return "was made with other training rows: the dataset's content has changed"
    return None


def discard_later(plan: TrainingPlan, step: int) -> None:
    """Delete this run's and unfinished checkpoints after ``step``: the run will write these steps again."""
    for checkpoint_step, folder in list_checkpoints(Path(plan.checkpoint.directory)):
        if checkpoint_step <= step:
            continue
        try:
            foreign = read_marker(folder).run_id != plan.job.run_id
        except ValueError:
            foreign = False
        if not foreign:
            shutil.rmtree(folder)


def rotate_checkpoints(plan: TrainingPlan, newest_step: int, best_step: int | None = None) -> None:
    """Delete this run's older checkpoints beyond ``checkpoint.keep``, all but the best, and its unfinished ones.

    To be called once the one of ``newest_step`` is complete, so that there is always a complete one.
    """
    kept = 0
    for step, folder in list_checkpoints(Path(plan.checkpoint.directory)):
        if step > newest_step:
            continue
        try:
            foreign = read_marker(folder).run_id != plan.job.run_id
        except ValueError:
            shutil.rmtree(folder)
            continue
        if foreign:
            continue
        kept += 1
        if kept > plan.checkpoint.keep and step != best_step:
            shutil.rmtree(folder)
