"""Exit codes of the trainer: the one table behind the trainer's exits, the Job's podFailurePolicy and the status."""

from enum import IntEnum, StrEnum
from typing import NamedTuple


class ExitCode(IntEnum):
    """What the trainer's process exits with."""

    OK = 0
    ERROR = 1
    INVALID = 10
    OUT_OF_MEMORY = 11
    CHECKPOINT_UNUSABLE = 12
    GATE_FAILED = 13
    PREFLIGHT_FAILED = 14
    PREEMPTED = 75
    PEER_LOST = 76


class Retry(StrEnum):
    """What an exit means for the Job."""

    NEVER = "never"  # the same input fails again: the Job fails at once
    COUNTED = "counted"  # run again, up to backoffLimit
    FREE = "free"  # run again, not counted


class Meaning(NamedTuple):
    """One row of the table."""

    retry: Retry
    reason: str
    description: str


TABLE: dict[ExitCode, Meaning] = {
    ExitCode.OK: Meaning(Retry.NEVER, "Succeeded", "Training, evaluation and export are done."),
    ExitCode.ERROR: Meaning(Retry.COUNTED, "TrainerError", "An unforeseen error; run again up to backoffLimit."),
    ExitCode.INVALID: Meaning(
        Retry.NEVER, "InvalidPlanOrData", "The plan, the model or the data can't be used; running again can't help."
    ),
    ExitCode.OUT_OF_MEMORY: Meaning(
        Retry.NEVER, "OutOfMemory", "The device or host ran out of memory; the same settings would again."
    ),
    ExitCode.CHECKPOINT_UNUSABLE: Meaning(
        Retry.NEVER, "CheckpointUnusable", "Checkpoints exist, and none of them is complete and fits this plan."
    ),
    ExitCode.GATE_FAILED: Meaning(
        Retry.NEVER, "GateFailed", "The trained model is exported, and its evaluation misses a gate."
    ),
    ExitCode.PREFLIGHT_FAILED: Meaning(
        Retry.COUNTED,
        "PreflightFailed",
        "A node or the network isn't what the job was promised; another try may get other nodes.",
    ),
    ExitCode.PEER_LOST: Meaning(
        Retry.FREE, "PeerLost", "The processes of another node went away; all start again from the newest checkpoint."
    ),
    ExitCode.PREEMPTED: Meaning(
        Retry.FREE, "Preempted", "Told to stop; a complete checkpoint was written first, the next run goes on from it."
    ),
}


def parse_exit_code(code: int) -> Meaning:
    """The meaning of a process's exit code; codes outside the table (signals, crashes) are counted errors."""
    if code in TABLE:
        return TABLE[ExitCode(code)]
    name = f"signal {code - 128}" if code > 128 else f"exit code {code}"
    return Meaning(Retry.COUNTED, "TrainerError", f"The trainer ended by {name} without a word.")
