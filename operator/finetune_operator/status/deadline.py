"""How long a job has been active over workloads that were made anew: the controller of each counts from its own start. Pure."""

from datetime import datetime

from finetune_api.kubernetes import parse_duration
from finetune_operator.observe.snapshot import Manifest, Snapshot, Workload


def decide_activity(snapshot: Snapshot, workload: Workload) -> Manifest:
    """``startTime`` and ``activeSecondsBefore`` of status.workload, for a job that has a deadline."""
    if _find_deadline(snapshot) is None:
        return {}
    known = snapshot.status.get("workload", {})
    before = known.get("activeSecondsBefore", 0)
    if known and known["uid"] != workload.uid:
        before += _count_seconds(known.get("startTime"), snapshot.now)
    return {"activeSecondsBefore": before} | ({} if workload.started is None else {"startTime": workload.started})


def is_overdue(snapshot: Snapshot, workload: Workload) -> bool:
    """Whether the deadline has passed that the workload's own controller, which knows of no earlier ones, sees later."""
    deadline, known = _find_deadline(snapshot), snapshot.status.get("workload", {})
    before = known.get("activeSecondsBefore", 0)
    if deadline is None or not before or known.get("uid") != workload.uid:
        return False
    return bool(before + _count_seconds(workload.started, snapshot.now) >= deadline)


def _find_deadline(snapshot: Snapshot) -> int | None:
    deadline = snapshot.finetunejob["spec"].get("runPolicy", {}).get("activeDeadline")
    return None if deadline is None else parse_duration(deadline)


def _count_seconds(started: str | None, now: datetime) -> int:
    return 0 if started is None else int((now - datetime.fromisoformat(started)).total_seconds())
