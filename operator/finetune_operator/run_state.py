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


def read_run_state(status: dict[str, Any]) -> RunState:
    """As earlier passes wrote it down."""
    return RunState(status.get("restarts", 0), status.get("market", "spot"))
