"""What a job's manifests depend on beside its spec: what became of it so far."""

from dataclasses import dataclass
from typing import Any, Literal

Market = Literal["spot", "on-demand"]


@dataclass(frozen=True)
class RunState:
    """Of a job that hasn't run yet, when nothing else is said."""

    restarts: int = 0
    """How much of backoffLimit earlier workloads used up."""
    market: Market = "spot"
    """Where a job with spot.enabled runs."""
    is_overspent: bool = False
    """Whether it has used up its budget."""


def read_run_state(finetunejob: dict[str, Any]) -> RunState:
    """As earlier passes wrote it down."""
    status = finetunejob.get("status") or {}
    return RunState(
        status.get("restarts", 0), status.get("market", "spot"), describe_overspending(finetunejob) is not None
    )


def describe_overspending(finetunejob: dict[str, Any]) -> str | None:
    """Which part of the budget is used up, for people; None: none is."""
    budget, status = finetunejob["spec"].get("budget", {}), finetunejob.get("status") or {}
    for used, allowed, unit in (("gpuHours", "maxGpuHours", " GPU hours"), ("cost", "maxCost", "")):
        if allowed in budget and status.get(used, 0) >= budget[allowed]:
            return f"Used {status[used]:g}{unit}; budget.{allowed} allows {budget[allowed]:g}."
    return None
