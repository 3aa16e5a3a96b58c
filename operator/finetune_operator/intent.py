"""What has to be done so that the children are as they should be. Pure: snapshot and manifests in, intent out."""

from dataclasses import dataclass, field

from finetune_api import names
from finetune_api.exit_codes import Retry, parse_exit_code
from finetune_api.names import Reason
from finetune_operator.manifests.metadata import Manifest, name_kind
from finetune_operator.observe.counts import count_ends, find_saved_step
from finetune_operator.observe.snapshot import Snapshot, Workload, select_policy

# What of the workload's policy follows the FineTuneJob after the start; all else is fixed when the workload is made.
FOLLOWING = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
# The Job controller waits 10 s before it replaces the first pod, then twice as long each time, up to 10 minutes, also for
# pods that did nothing wrong, and for those that trained for days in between. A Job that is made anew begins at 0.
ENDS_A_JOB = 2


@dataclass(frozen=True)
class Obstacle:
    """Why nothing can be done now; looked at again soon."""

    reason: str
    message: str


@dataclass(frozen=True)
class Intent:
    """What one pass does to the children."""

    apply: tuple[Manifest, ...] = ()
    delete: tuple[Manifest, ...] = ()
    """Children of our own that are outdated; deleted before anything is applied."""
    workload_patch: Manifest = field(default_factory=dict)
    """Fields of the workload's policy to change; empty: none."""
    obstacle: Obstacle | None = None


def decide_intent(snapshot: Snapshot, manifests: list[Manifest], has_failed: bool = False) -> Intent:
    """Creates what is missing while there is no workload; afterwards only the few fields that follow.

    ``has_failed``: the workload would go on, and is to be stopped.
    """
    if snapshot.workload is not None:
        return _follow(snapshot, snapshot.workload, manifests[-1], has_failed)
    started = "workload" in snapshot.status
    apply, delete = [], []
    for manifest in manifests:
        existing = snapshot.children.get((name_kind(manifest), manifest["metadata"]["name"]))
        if existing is None:
            apply.append(manifest)
        elif obstacle := _decide_obstacle(existing, manifest, snapshot.uid):
            return Intent(obstacle=obstacle)
        elif not started and "data" in manifest and existing.get("data") != manifest["data"]:
            # Made by a pass that died before the workload, from a spec or settings that changed since. Once a workload
            # ran, its plan is the plan.
            delete.append(existing)
            apply.append(manifest)
    return Intent(tuple(apply), tuple(delete))


def _follow(snapshot: Snapshot, workload: Workload, wanted: Manifest, has_failed: bool) -> Intent:
    what = f"{workload.kind} {workload.name}"
    if workload.owner_uid != snapshot.uid:
        return Intent(obstacle=_taken(what))
    if workload.deleting:
        return Intent(obstacle=_going(what))
    if has_failed:
        return Intent(workload_patch={} if workload.policy.get("suspend") else {"suspend": True})
    if workload.finished:
        return Intent(workload_patch=_compare(select_policy(wanted), workload.policy, ("ttlSecondsAfterFinished",)))
    is_queued = names.LABEL_QUEUE in wanted["metadata"]["labels"]
    has_moved = workload.market != wanted["metadata"]["annotations"].get(names.ANNOTATION_MARKET)
    # A job in a queue would lose its turn.
    if has_moved or (not is_queued and _waits_needlessly(snapshot, workload)):
        return Intent(delete=({"kind": workload.kind, "metadata": {"name": workload.name, "uid": workload.uid}},))
    followed: tuple[str, ...] = FOLLOWING
    if is_queued and not snapshot.is_paused:
        # Kueue starts and stops it; only the person's own wish to stop goes before that.
        followed = FOLLOWING[1:]
    return Intent(workload_patch=_compare(select_policy(wanted), workload.policy, followed))


def _compare(wanted: Manifest, actual: Manifest, followed: tuple[str, ...]) -> Manifest:
    return {name: wanted.get(name) for name in followed if wanted.get(name) != actual.get(name)}


def _waits_needlessly(snapshot: Snapshot, workload: Workload) -> bool:
    """Whether pods that have ended would be replaced late, without a fault of theirs or with progress in between.

    Those that were evicted are gone by then. Nothing is deleted that isn't counted, and written down, yet.
    """
    if workload.kind != "Job" or workload.policy.get("suspend"):
        return False
    ended, counts = [pod.exit_code for pod in snapshot.pods], count_ends(snapshot)
    if None in ended or 0 in ended or not counts.are_written(snapshot.status):
        return False
    if workload.uncounted or any(pod.uncounted for pod in snapshot.pods):
        return False
    known = snapshot.status.get("workload", {})
    before = known.get("preemptionsBefore", 0) + known.get("restartsBefore", 0)
    if counts.preemptions + counts.restarts - before < ENDS_A_JOB:
        return False
    retries = {Retry.FREE if pod.disrupted else parse_exit_code(pod.exit_code or 0).retry for pod in snapshot.current_pods}  # fmt: skip
    if Retry.COUNTED in retries:
        is_last = workload.failed > workload.policy["backoffLimit"]
        return not is_last and find_saved_step(snapshot.status) > known.get("savedStepBefore", 0)
    return Retry.NEVER not in retries


def _decide_obstacle(existing: Manifest, manifest: Manifest, uid: str) -> Obstacle | None:
    """A claim that outlives its job may be used again by its name; anything else must be ours."""
    metadata = existing["metadata"]
    what = f"{manifest['kind']} {metadata['name']}"
    if "deletionTimestamp" in metadata:
        return _going(what)
    owners = [owner["uid"] for owner in metadata.get("ownerReferences", ()) if owner.get("controller")]
    if "ownerReferences" not in manifest["metadata"] and not owners:
        return None
    return None if uid in owners else _taken(what)


def _taken(what: str) -> Obstacle:
    return Obstacle(Reason.NAME_CONFLICT, f"{what} exists and isn't this FineTuneJob's; delete or rename one of them")


def _going(what: str) -> Obstacle:
    return Obstacle(Reason.DELETING, f"{what} is being deleted; a new one is made when it is gone")
