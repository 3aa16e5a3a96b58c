"""Which checkpoint a run goes on from."""

import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.marker import MARKER_NAME, FileRecord, Marker, parse_marker
from finetune_trainer.errors import CheckpointUnusableError
from finetune_trainer.store import Store

RESHAPED = ("single", "ddp")
"""Strategies whose processes all hold everything: their checkpoints fit any number of processes."""


@dataclass(frozen=True)
class ResumePoint:
    """A complete checkpoint of this run."""

    folder: Path
    """On this node's disks, or on one that all nodes see."""
    marker: Marker


def name_checkpoint(step: int) -> str:
    """Its folder, as the Trainer calls it."""
    return f"checkpoint-{step}"


def list_checkpoints(store: Store) -> list[int]:
    """Steps of the checkpoints, newest first, complete or not."""
    found = [re.fullmatch(r"checkpoint-(\d+)", name) for name in store.list_folders()]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def read_marker_file(store: Store, step: int) -> bytes | None:
    """None: it was never completed."""
    return store.read(f"{name_checkpoint(step)}/{MARKER_NAME}")


def read_marker(store: Store, step: int) -> Marker:
    """The marker of a checkpoint, its files unchecked. Raises: ValueError saying what is missing or broken."""
    content = read_marker_file(store, step)
    if content is None:
        raise ValueError("has no marker: it was never completed")
    return parse_marker(content)


def fetch_checkpoint(store: Store, plan: TrainingPlan, marker: Marker) -> Path:
    """The checkpoint's folder, each of its files checked; where nodes write to their own disks, it is brought there.

    Raises: ValueError naming the first file that is missing or not as the marker says.
    """
    name = name_checkpoint(marker.step)
    folder = Path(plan.checkpoint.folder) / name
    if plan.checkpoint.staging is not None:
        shutil.rmtree(folder, ignore_errors=True)

    def check(record: FileRecord) -> None:
        path = f"{name}/{record.path}"
        if plan.checkpoint.staging is None:
            _require_intact(record, partial(store.inspect, path))
        else:
            _require_intact(record, partial(store.download, path, folder / record.path))

    store.do_each(check, marker.files)
    return folder


def _require_intact(record: FileRecord, measure: Callable[[], FileRecord]) -> None:
    """Raises: ValueError when the file is missing or not as the marker says."""
    try:
        found = measure()
    except FileNotFoundError:
        raise ValueError(f"lacks the file {record.path}") from None
    if (found.size, found.sha256) != (record.size, record.sha256):
        raise ValueError(f"has a changed file {record.path}")


def find_resume_point(
    store: Store, plan: TrainingPlan, data_fingerprint: str, warn: Callable[[str], None]
) -> ResumePoint | None:
    """The newest complete checkpoint that fits, None to start from the beginning.

    Broken ones, and those of another run, are passed over with a warning.

    Raises: CheckpointUnusableError when ones of this run were completed and none is whole and fits: going on from the
    beginning would throw their work away, going on from them would not be the same training.
    """
    if plan.checkpoint.resume == "never":
        return None
    misfits = []
    for step in list_checkpoints(store):
        name = name_checkpoint(step)
        if (content := read_marker_file(store, step)) is None:
            warn(f"checkpoint {name} has no marker: it was never completed; passed over")
            continue
        try:
            marker = parse_marker(content)
            if marker.run_id != plan.job.run_id:
                warn(f"checkpoint {name} belongs to another run, {marker.run_id}; passed over")
                continue
            misfit = _describe_misfit(plan, data_fingerprint, marker)
            if misfit is None:
                return ResumePoint(fetch_checkpoint(store, plan, marker), marker)
        except ValueError as error:
            warn(f"checkpoint {name} {error}; passed over")
            misfit = str(error)
        misfits.append(f"{name} {misfit}")
    if misfits:
        raise CheckpointUnusableError(
            f"no checkpoint in {store.uri} can be resumed: {'; '.join(misfits)}. Restore the plan and "
            "data that they were made with, or set checkpoint.resume: never to start anew"
        )
    return None


def adopt_checkpoint(store: Store, plan: TrainingPlan, data_fingerprint: str) -> int | None:
    """Make the checkpoint that the plan names as its origin one of this run; its step. None: there is none, or no need of it.

    Raises: CheckpointUnusableError when it is broken or doesn't fit.
    """
    checkpoint = plan.checkpoint
    if checkpoint.origin is None or any(read_marker_file(store, step) for step in list_checkpoints(store)):
        return None
    place, _, name = checkpoint.origin.rpartition("/")
    origin, step = Store(place), int(name.removeprefix("checkpoint-"))
    try:
        marker = read_marker(origin, step)
        if misfit := _describe_misfit(plan, data_fingerprint, marker):
            raise ValueError(misfit)
        for record in marker.files:
            _copy_file(origin, store, name, record)
    except ValueError as error:
        raise CheckpointUnusableError(f"checkpoint.resume: {checkpoint.origin} {error}") from error
    own = marker.model_copy(update={"run_id": plan.job.run_id})
    store.write(f"{name}/{MARKER_NAME}", own.to_json())
    return step


def _copy_file(origin: Store, store: Store, name: str, record: FileRecord) -> None:
    """Of the checkpoint of this name. Raises: ValueError when it is missing or not as the marker says."""
    path = f"{name}/{record.path}"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "file"
        _require_intact(record, partial(origin.download, path, file))
        store.upload(file, path)


def _describe_misfit(plan: TrainingPlan, data_fingerprint: str, marker: Marker) -> str | None:
    parallelism = plan.parallelism
    if marker.training_hash != plan.training_hash():
        return "was made with other model, dataset, method or training settings"
    if marker.world_size != parallelism.world_size and parallelism.strategy not in RESHAPED:
        return (
            f"was made by {marker.world_size} processes, now there are {parallelism.world_size}, and those of "
            f"parallelism.strategy {parallelism.strategy} each saved a share"
        )
    if marker.data_fingerprint != data_fingerprint:
        return "was made with other training rows: the dataset's content has changed"
    return None


def discard_later(store: Store, plan: TrainingPlan, step: int) -> None:
    """Delete this run's and unfinished checkpoints after ``step``: the run will write these steps again."""
    for later in list_checkpoints(store):
        if later > step and not _is_foreign(store, plan, later):
            store.remove(name_checkpoint(later))


def rotate_checkpoints(store: Store, plan: TrainingPlan, newest_step: int, best_step: int | None = None) -> None:
    """Delete this run's older checkpoints beyond ``checkpoint.keep``, all but the best, and its unfinished ones.

    To be called once the one of ``newest_step`` is complete, so that there is always a complete one.
    """
    kept = 0
    for step in list_checkpoints(store):
        if step > newest_step:
            continue
        try:
            marker = read_marker(store, step)
        except ValueError:
            store.remove(name_checkpoint(step))
            continue
        if marker.run_id != plan.job.run_id:
            continue
        kept += 1
        if kept > plan.checkpoint.keep and step != best_step:
            store.remove(name_checkpoint(step))


def _is_foreign(store: Store, plan: TrainingPlan, step: int) -> bool:
    try:
        return read_marker(store, step).run_id != plan.job.run_id
    except ValueError:
        return False
