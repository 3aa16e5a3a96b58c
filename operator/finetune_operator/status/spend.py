"""What a job has spent so far. Pure."""

from datetime import UTC, datetime, timedelta

from finetune_api.spec import FineTuneJob
from finetune_operator.observe.snapshot import Manifest, Pod, Snapshot
from finetune_operator.plan.decide import Decided
from finetune_operator.status.conditions import format_time

# A write for less would be one for each pass.
COUNTED_FROM = timedelta(seconds=10)
_EVER = datetime.min.replace(tzinfo=UTC)


def decide_spend(snapshot: Snapshot, job: FineTuneJob, decided: Decided) -> Manifest:
    """The status fields gpuHours, cost and spentUntil; as they were where nothing worth a write was added."""
    before: Manifest = {
        key: snapshot.status[key] for key in ("gpuHours", "cost", "spentUntil") if key in snapshot.status
    }
    gpus, now = job.spec.resources.gpu.count, snapshot.now.replace(microsecond=0)
    until = datetime.fromisoformat(before["spentUntil"]) if before else _EVER
    seconds = sum(_seconds_held(pod, until, now) for pod in snapshot.pods)
    has_ended = any(
        pod.released_at is not None and datetime.fromisoformat(pod.released_at) > until for pod in snapshot.pods
    )
    if not gpus or not seconds or (now - until < COUNTED_FROM and not has_ended):
        return before
    hours = gpus * seconds / 3600
    news = {"gpuHours": round(before.get("gpuHours", 0) + hours, 4), "spentUntil": format_time(now)}
    if decided.price is not None:
        on_spot = job.spec.spot.enabled and snapshot.status.get("market", "spot") == "spot"
        price = decided.price.spot if on_spot and decided.price.spot is not None else decided.price.on_demand
        news["cost"] = round(before.get("cost", 0) + hours * price, 4)
    return before | news


def _seconds_held(pod: Pod, since: datetime, now: datetime) -> float:
    """How long a pod held its GPUs between two moments."""
    if pod.held_since is None:
        return 0.0
    end = min(now, datetime.fromisoformat(pod.released_at)) if pod.released_at is not None else now
    return max(0.0, (end - max(since, datetime.fromisoformat(pod.held_since))).total_seconds())
