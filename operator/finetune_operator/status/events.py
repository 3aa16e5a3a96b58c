"""Events: one for each turn in a job's life that a person wants to find in ``kubectl describe``."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.names import Phase, Reason
from finetune_operator.observe.snapshot import Manifest
from finetune_operator.status.stage import Stage, find_reason

WARNINGS = frozenset(
    {
        Reason.NAME_CONFLICT,
        Reason.REFUSED,
        Reason.POD_REFUSED,
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL,
        Reason.CONTAINER_CONFIG,
        Reason.BUDGET_EXCEEDED,
    }
)


@dataclass(frozen=True)
class Event:
    """One Event about the FineTuneJob."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def decide_events(stage: Stage, before: Manifest, after: Manifest) -> list[Event]:
    """What changed between two statuses, as Events; nothing when a person would learn nothing."""
    events = []
    if "workload" in after and before.get("workload", {}).get("uid") != after["workload"]["uid"]:
        events.append(
            Event("Normal", Reason.CREATED, f"Created {after['workload']['kind']} {after['workload']['name']}.")
        )
    if after.get("restarts", 0) > before.get("restarts", 0):
        events.append(Event("Warning", Reason.RESTARTING, f"Restart {after['restarts']}: {stage.message}"))
    if "market" in before and after.get("market") != before["market"]:
        events.append(Event("Normal", Reason.MARKET_CHANGED, f"Goes on with {after['market']} nodes."))
    if stage.phase == before.get("phase") and stage.reason == find_reason(before):
        return events
    if stage.phase == Phase.SUCCEEDED:
        events.append(Event("Normal", stage.reason, stage.message))
    elif stage.phase in (Phase.FAILED, Phase.PREEMPTED) or stage.reason in WARNINGS:
        events.append(Event("Warning", stage.reason, stage.message))
    elif stage.phase == Phase.RESUMING:
        events.append(Event("Normal", stage.reason, stage.message))
    elif stage.phase == Phase.SUSPENDED:
        events.append(Event("Normal", Reason.SUSPENDED, stage.message))
    elif before.get("phase") == Phase.SUSPENDED:
        events.append(Event("Normal", Reason.RESUMED, "Resumed."))
    return events
