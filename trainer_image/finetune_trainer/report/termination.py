"""The termination message: why the process ended, where the kubelet and the launcher look for it."""

import os
from pathlib import Path

from finetune_api import names
from finetune_api.exit_codes import TABLE, ExitCode
from finetune_api.progress import ArtifactRecord, Progress, Termination
from finetune_trainer.files import write_atomically

_LIMIT = 4096
"""Bytes that Kubernetes keeps."""

RANK_DIRECTORY_ENV = "FINETUNE_RANK_TERMINATIONS"
"""Folder for one message a rank: set by the launcher, which passes on the one that tells the cause."""


def build_termination(
    code: ExitCode, message: str, progress: Progress | None = None, artifacts: tuple[ArtifactRecord, ...] = ()
) -> Termination:
    """The message of an end with ``code``."""
    if progress is None:
        return Termination(reason=TABLE[code].reason, message=message)
    return Termination(
        reason=TABLE[code].reason,
        message=message,
        step=progress.step,
        total_steps=progress.total_steps,
        checkpoint_step=progress.checkpoint_step,
        loss=progress.loss,
        eval_loss=progress.eval_loss,
        tokens_per_second=progress.tokens_per_second,
        lost_steps=progress.lost_steps,
        artifacts=artifacts,
    )


def format_termination(termination: Termination) -> str:
    """JSON of at most 4096 bytes: the message is cut, then the artifacts are left out."""
    text = termination.model_dump_json(by_alias=True)
    while len(text.encode()) > _LIMIT and len(termination.message) > 200:
        surplus = len(text.encode()) - _LIMIT
        shorter = termination.message[: max(200, len(termination.message) - surplus - 1)] + "…"
        if len(shorter) >= len(termination.message):
            break
        termination = termination.model_copy(update={"message": shorter})
        text = termination.model_dump_json(by_alias=True)
    if len(text.encode()) > _LIMIT:
        text = termination.model_copy(update={"artifacts": ()}).model_dump_json(by_alias=True)
    return text


def write_termination(termination: Termination) -> None:
    """Write the message where it is looked for: the launcher's folder, else the file of the environment or kubelet."""
    text = format_termination(termination)
    rank_directory = os.environ.get(RANK_DIRECTORY_ENV)
    if rank_directory:
        write_atomically(Path(rank_directory) / os.environ["RANK"], text)
        return
    path = os.environ.get(names.ENV_TERMINATION_LOG)
    if path is None and not Path(names.TERMINATION_LOG).exists():
        return
    # The kubelet mounts this very file: it can be written, not replaced.
    Path(path or names.TERMINATION_LOG).write_text(text, encoding="utf-8")
