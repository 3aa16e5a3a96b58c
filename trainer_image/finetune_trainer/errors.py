"""The ways a run ends short, and the one place that turns an exception into an exit code and a message."""

import json
from collections.abc import Sequence

from pydantic_core import ErrorDetails

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.memory.report import describe_out_of_memory


class TrainerError(Exception):
    """An end that the trainer foresaw; ``str()`` says what happened, with which value, and what to change."""

    code = ExitCode.ERROR


class InvalidInputError(TrainerError):
    """The plan, the data or the model can't be used."""

    code = ExitCode.INVALID


class CheckpointUnusableError(TrainerError):
    """Complete checkpoints exist, and none fits this plan."""

    code = ExitCode.CHECKPOINT_UNUSABLE


class CheckpointLostError(TrainerError):
    """A checkpoint can't be kept: the disk is full, or the store is away for too long."""


class PreemptedError(TrainerError):
    """Told to stop. After the first step a complete checkpoint was written before this is raised."""

    code = ExitCode.PREEMPTED


class PeerLostError(TrainerError):
    """Another node is why this one ends."""

    code = ExitCode.PEER_LOST


def is_out_of_memory(error: BaseException) -> bool:
    """Whether device or host memory ran out. torch raises a plain RuntimeError for the host's allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "CUDA out of memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )


_BROKEN_CONNECTIONS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "ncclRemoteError",
    "remote process exited or there was a network error",
)
"""Words of gloo and NCCL for a process that is no longer there."""


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another process went away."""
    if type(error).__name__ in ("DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _BROKEN_CONNECTIONS)


def classify_error(error: BaseException, plan: TrainingPlan) -> tuple[ExitCode, str]:
    """The exit code and the message that stand for ``error``."""
    if isinstance(error, TrainerError):
        return error.code, str(error)
    if is_out_of_memory(error):
        return ExitCode.OUT_OF_MEMORY, describe_out_of_memory(plan)
    if plan.parallelism.nodes > 1 and is_peer_lost(error):
        return ExitCode.PEER_LOST, "the processes of another node went away; this one waits for them to come back"
    first_line = (str(error).strip() or repr(error)).splitlines()[0]
    return ExitCode.ERROR, f"{type(error).__name__}: {first_line}"


def describe_validation_error(errors: Sequence[ErrorDetails]) -> str:
    """pydantic's errors of a plan as ``field: what (value)``, the first five."""
    lines = []
    for error in errors[:5]:
        path = ".".join(str(part) for part in error["loc"]) or "plan"
        value = "" if error["type"] == "missing" else f" (is {json.dumps(error['input'], default=str)[:80]})"
        lines.append(f"{path}: {error['msg']}{value}")
    return "; ".join(lines)
