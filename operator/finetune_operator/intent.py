"""What has to be done so that the children are as they should be. Pure: snapshot and manifests in, intent out."""

from dataclasses import dataclass, field

from finetune_api.names import Reason
from finetune_operator.manifests.metadata import Manifest
from finetune_operator.observe.snapshot import Snapshot

# The fields of a Job that follow the FineTuneJob after the start; all others are fixed when the Job is made.
FOLLOWING = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")


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
    """Fields of the Job's spec to change; empty: none."""
    obstacle: Obstacle | None = None


def decide_intent(snapshot: Snapshot, manifests: list[Manifest]) -> Intent:
    """Creates what is missing while there is no workload; afterwards only the few fields that follow."""
    if snapshot.workload is not None:
        return _follow(snapshot, manifests[-1])
    started = "workload" in snapshot.status
    apply, delete = [], []
    for manifest in manifests:
        existing = snapshot.children.get((manifest["kind"], manifest["metadata"]["name"]))
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


def _follow(snapshot: Snapshot, job: Manifest) -> Intent:
    workload = snapshot.workload
    assert workload is not None
    if workload.owner_uid != snapshot.uid:
        return Intent(obstacle=_taken(f"Job {workload.name}"))
    if workload.deleting:
        return Intent(obstacle=_going(f"Job {workload.name}"))
    if workload.finished:
        followed: tuple[str, ...] = ("ttlSecondsAfterFinished",)
    else:
        followed = FOLLOWING
    wanted, actual = job["spec"], workload.spec
    return Intent(workload_patch={name: wanted.get(name) for name in followed if wanted.get(name) != actual.get(name)})


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
