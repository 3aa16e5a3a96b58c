"""The marker that makes a checkpoint count: written last, it names every file with size and hash."""

from pydantic import ValidationError

from finetune_api.model_base import ApiModel

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
    lost_steps: int = 0
    """Steps that had been done and had to be done again."""
    files: tuple[FileRecord, ...] = ()

    def to_json(self) -> bytes:
        return self.model_dump_json(by_alias=True, indent=2).encode() + b"\n"


def parse_marker(content: bytes) -> Marker:
    """Raises: ValueError saying what is broken."""
    try:
        return Marker.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"has an unreadable marker: {error.errors()[0]['msg']}") from error
