"""Conditions of a FineTuneJob: each follows from the stage."""

from datetime import datetime

from finetune_api.names import Condition, Phase, Reason
from finetune_operator.observe.snapshot import Manifest
from finetune_operator.status.stage import Stage

TRAINING_PHASES = frozenset({Phase.RUNNING, Phase.CHECKPOINTING, Phase.EVALUATING, Phase.EXPORTING})
# Messages that change while nothing else does; a condition must not follow them.
STILL_MESSAGES = {Reason.TRAINING: "The trainer is at work; see status.progress."}


def decide_conditions(stage: Stage, before: list[Manifest], generation: int, now: datetime) -> list[Manifest]:
    """All conditions, in a fixed order; lastTransitionTime is kept where the status didn't change."""
    reason, message = stage.reason, STILL_MESSAGES.get(stage.reason, stage.message)
    finished = stage.phase in (Phase.SUCCEEDED, Phase.FAILED)
    holds = {
        Condition.VALIDATED: reason != Reason.INVALID_SPEC,
        Condition.READY: stage.phase in TRAINING_PHASES,
        Condition.PROGRESSING: not finished and stage.phase != Phase.SUSPENDED,
        Condition.COMPLETE: stage.phase == Phase.SUCCEEDED,
        Condition.FAILED: stage.phase == Phase.FAILED,
        Condition.SUSPENDED: stage.phase == Phase.SUSPENDED,
    }
    told = {
        Condition.VALIDATED: (Reason.ACCEPTED, "The spec is valid.")
        if holds[Condition.VALIDATED]
        else (reason, message),
        Condition.SUSPENDED: (reason, message) if holds[Condition.SUSPENDED] else (Reason.NOT_SUSPENDED, ""),
    }
    return [
        _build_condition(type_, holding, *told.get(type_, (reason, message)), before, generation, now)
        for type_, holding in holds.items()
    ]


def _build_condition(type_: str, holding: bool, reason: str, message: str, before: list[Manifest], generation: int, now: datetime) -> Manifest:  # fmt: skip
    status = "True" if holding else "False"
    previous = next((condition for condition in before if condition["type"] == type_), {})
    since = previous["lastTransitionTime"] if previous.get("status") == status else format_time(now)
    return {
        "type": type_,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since,
        "reason": reason,
        "message": message,
    }


def format_time(moment: datetime) -> str:
    """As metav1.Time writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
