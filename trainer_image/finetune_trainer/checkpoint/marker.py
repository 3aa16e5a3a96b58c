"""The marker that makes a checkpoint count: written last, it names every file with size and hash."""

from pathlib import Path

from pydantic import ValidationError

from finetune_api.model_base import ApiModel
from finetune_trainer.files import hash_file, list_files, sync_folder, write_atomically

MARKER_NAME = "finetune-checkpoint.json"


class FileRecord(ApiModel):
    path: str
    """Relative to the checkpoint's folder."""
    size: int
    sha256: str


class Marker(ApiModel):
    """What a checkpoint belongs to and how far the run was."""

    version: int = 1
    run_id: str
    training_hash: str
    """``TrainingPlan.training_hash()``."""
    data_fingerprint: str
    world_size: int
    step: int
    epoch: float
    samples_consumed: int
    """Training rows seen by all ranks together."""
    tokens_seen: int
    train_seconds: float
    resumes: int
    """How often the run had been resumed."""
    files: tuple[FileRecord, ...] = ()


def write_marker(folder: Path, marker: Marker) -> None:
    """Put the folder's files on the disk, then write the marker that names them."""
    sync_folder(folder)
    records = tuple(
        FileRecord(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=hash_file(path))
        for path in list_files(folder)
        if path.name != MARKER_NAME
    )
    complete = marker.model_copy(update={"files": records})
    write_atomically(folder / MARKER_NAME, complete.model_dump_json(by_alias=True, indent=2) + "\n")


def read_marker(folder: Path) -> Marker:
    """The marker in ``folder``, its files unchecked. Raises: ValueError saying what is missing or broken."""
    path = folder / MARKER_NAME
    if not path.exists():
        raise ValueError("has no marker: it was never completed")
    try:
        return Marker.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"has an unreadable marker: {error.errors()[0]['msg']}") from error


def verify_files(folder: Path, marker: Marker) -> None:
    """Raises: ValueError naming the first file that is missing or not as the marker says."""
    for record in marker.files:
        file = folder / record.path
        if not file.exists():
            raise ValueError(f"lacks the file {record.path}")
        if file.stat().st_size != record.size or hash_file(file) != record.sha256:
            raise ValueError(f"has a changed file {record.path}")
