"""What a run's checkpoints look like from outside."""

from pathlib import Path

from finetune_trainer.checkpoint.marker import MARKER_NAME


def list_complete(folder: Path) -> list[int]:
    """Steps of the checkpoints below ``folder`` that have their marker, in order; none of a folder that isn't there."""
    return sorted(int(marker.parent.name.split("-")[1]) for marker in folder.rglob(MARKER_NAME))
