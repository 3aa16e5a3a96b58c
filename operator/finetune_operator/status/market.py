"""On which market a job with spot.enabled runs. Pure."""

from datetime import datetime, timedelta

from finetune_api.kubernetes import parse_duration
from finetune_api.spec import Spot
from finetune_operator.observe.snapshot import Manifest, Snapshot
from finetune_operator.run_state import Market


def decide_market(spot: Spot, status: Manifest, snapshot: Snapshot) -> Market:
    """The market from now on; ``status`` has this pass's counts, and what earlier passes decided.

    A change makes the workload anew: what runs is told to stop, saves, and goes on elsewhere.
    """
    market: Market = status.get("market", "spot")
    fallback = spot.fallback
    if fallback is None or "market" not in status:
        return market
    since = datetime.fromisoformat(status["marketSince"])
    if market == "on-demand":
        is_due = fallback.back_after is not None and snapshot.now - since >= _length(fallback.back_after)
        return "spot" if is_due else market
    preemptions = status.get("preemptions", 0) - status.get("marketPreemptions", 0)
    if fallback.after_preemptions is not None and preemptions >= fallback.after_preemptions:
        return "on-demand"
    waiting = [pod for pod in snapshot.current_pods if pod.unschedulable_since is not None]
    if fallback.after_wait is not None and any(
        snapshot.now - max(since, datetime.fromisoformat(pod.unschedulable_since or "")) >= _length(fallback.after_wait)
        for pod in waiting
    ):
        return "on-demand"
    return market


def _length(duration: str) -> timedelta:
    return timedelta(seconds=parse_duration(duration))
