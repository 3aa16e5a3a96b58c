"""What is, at one moment: the FineTuneJob, its workload, pods and progress. Decisions see nothing else."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from finetune_api import names
from finetune_api.exit_codes import ExitCode, Retry, parse_exit_code
from finetune_api.progress import Progress, Termination
from finetune_operator.run_state import describe_overspending

Manifest = dict[str, Any]

# The Job controller makes a pod in a moment; after this something is in its way.
POD_GRACE = timedelta(seconds=5)
# Conditions of Jobs and PyTorchJobs that say that they are over, and the Job's word for it.
_ENDS = {"Complete": "Complete", "Succeeded": "Complete", "Failed": "Failed"}
_TRACKING = "batch.kubernetes.io/job-tracking"
_BLAME = (Retry.NEVER, Retry.COUNTED, Retry.FREE)


@dataclass(frozen=True)
class Workload:
    """The Job, or the PyTorchJob."""

    kind: str
    name: str
    uid: str
    owner_uid: str | None
    market: str | None
    """Where its pods run, for jobs with spot.enabled."""
    policy: Manifest
    """The part of its spec that says whether, and how long, it may run."""
    suspended: bool
    """Its controller has stopped it; the policy's suspend is what was asked."""
    failed: int
    """Failed pods that count towards backoffLimit, by the Job controller."""
    uncounted: bool
    """Whether pods have ended that the Job controller is about to count."""
    finished: str | None
    """Complete or Failed, when it is."""
    reason: str
    message: str
    deleting: bool
    started: str | None
    """When the Job controller began, the last time; None while it is suspended."""

    def lacks_pods(self, now: datetime) -> bool:
        """Whether a Job without pods should have had one by now."""
        return (
            self.finished is None
            and self.started is not None
            and now - datetime.fromisoformat(self.started) >= POD_GRACE
        )


@dataclass(frozen=True)
class Pod:
    """One pod of the workload."""

    name: str
    index: int
    """Its node's number; 0 is that of rank 0."""
    created: str
    phase: str
    node: str | None
    ip: str | None
    deleting: bool
    uncounted: bool
    """Whether the Job controller still has to count its end."""
    disruption: str | None
    """Who takes it away, such as EvictionByEvictionAPI or PreemptionByScheduler; None: nobody does."""
    unschedulable: str | None
    """The scheduler's message."""
    unschedulable_since: str | None
    waiting_reason: str | None
    waiting_message: str
    running: bool
    restarts: int
    """How often its container was started again in place."""
    last_exit_code: int | None
    """What its container ended with, now or before it was started again."""
    exit_code: int | None
    """What it ended with, while it doesn't run."""
    exit_reason: str
    """The kubelet's word, such as OOMKilled."""
    held_since: str | None
    """When its node took it, and set its GPUs aside."""
    released_at: str | None
    """When it gave them back: a container that is started again in place keeps them."""
    termination: Termination | None
    """The trainer's last words."""

    @property
    def disrupted(self) -> bool:
        return self.disruption is not None

    @property
    def last_end(self) -> str:
        """Name of its newest end."""
        return f"{self.name}/{self.restarts if self.exit_code is not None or self.disrupted else self.restarts - 1}"

    @property
    def preempted(self) -> bool:
        """Ended, or about to, by a disruption, or by itself after a checkpoint; not because it was deleted (suspend)."""
        return self.disrupted or (self.last_exit_code == ExitCode.PREEMPTED and not self.deleting)


@dataclass(frozen=True)
class Snapshot:
    """All that one pass decides on."""

    finetunejob: Manifest
    workload: Workload | None
    pods: tuple[Pod, ...]
    """Oldest first."""
    progress: Progress | None
    """News of the running pod; None: none this time."""
    children: dict[tuple[str, str], Manifest]
    """Other children that exist, by (kind, name); looked up only while there is no workload."""
    now: datetime
    pod_refusal: str = ""
    """Why there is no pod, when the API server refused it."""

    @property
    def status(self) -> Manifest:
        status: Manifest = self.finetunejob.get("status") or {}
        return status

    @property
    def uid(self) -> str:
        uid: str = self.finetunejob["metadata"]["uid"]
        return uid

    @property
    def is_paused(self) -> bool:
        """Whether it may not run: the person wants it suspended, or its budget is used up."""
        wished = self.finetunejob["spec"].get("runPolicy", {}).get("suspend")
        return bool(wished) or self.overspending is not None

    @property
    def overspending(self) -> str | None:
        """Which part of the budget is used up."""
        return describe_overspending(self.finetunejob)

    @property
    def own_workload(self) -> Workload | None:
        """The workload, unless it is somebody else's of the same name."""
        return self.workload if self.workload is not None and self.workload.owner_uid == self.uid else None

    @property
    def is_elastic(self) -> bool:
        """Whether pods may be missing while the others train."""
        return bool(self.finetunejob["spec"].get("parallelism", {}).get("elastic"))

    @property
    def current_pods(self) -> list[Pod]:
        """The newest pod of each node, by their number."""
        newest = {pod.index: pod for pod in self.pods}
        return [newest[index] for index in sorted(newest)]

    @property
    def leader(self) -> Pod | None:
        """The newest pod of the first node: the one that tells how far the training is."""
        return next(iter(self.current_pods), None)

    @property
    def telling_pod(self) -> Pod | None:
        """Of the current pods the one that says why the training stands still; the leader while it doesn't."""
        if self.is_elastic and self.leader is not None and self.leader.running:
            return self.leader
        ended = [pod for pod in self.current_pods if pod.exit_code not in (None, 0)]
        if ended:
            return min(ended, key=lambda pod: _BLAME.index(parse_exit_code(pod.exit_code or 0).retry) + (pod.exit_code == ExitCode.PEER_LOST))  # fmt: skip
        standing = (pod for pod in self.current_pods if not pod.running and pod.exit_code is None)
        return next(standing, self.leader)


def parse_workload(workload: Manifest) -> Workload:
    """A Job or PyTorchJob as the API server returns it."""
    kind, metadata, status = workload["kind"], workload["metadata"], workload.get("status") or {}
    owner = next((owner for owner in metadata.get("ownerReferences", ()) if owner.get("controller")), None)
    holding = {
        condition["type"]: condition for condition in status.get("conditions") or () if condition["status"] == "True"
    }
    finished = next((type_ for type_ in _ENDS if type_ in holding), None)
    return Workload(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=owner["uid"] if owner else None,
        market=metadata.get("annotations", {}).get(names.ANNOTATION_MARKET),
        policy=select_policy(workload),
        suspended="Suspended" in holding,
        uncounted=any((status.get("uncountedTerminatedPods") or {}).values()),
        failed=(status.get("failed") or 0) if kind == "Job" else 0,
        finished=_ENDS[finished] if finished else None,
        reason=holding[finished].get("reason", "") if finished else "",
        message=holding[finished].get("message", "") if finished else "",
        deleting="deletionTimestamp" in metadata,
        started=status.get("startTime"),
    )


def select_policy(workload: Manifest) -> Manifest:
    """The part of a workload's spec with suspend, activeDeadlineSeconds and ttlSecondsAfterFinished."""
    policy: Manifest = workload["spec"] if workload["kind"] == "Job" else workload["spec"]["runPolicy"]
    return policy


def wrap_policy(kind: str, changes: Manifest) -> Manifest:
    """Changes of that part as changes of the spec."""
    return changes if kind == "Job" else {"runPolicy": changes}


def find_workload_kind(finetunejob: Manifest) -> str:
    """The kind of the workload that the status knows, for a spec that says nothing any more."""
    kind: str = (finetunejob.get("status") or {}).get("workload", {}).get("kind", "Job")
    return kind


def parse_pod(pod: Manifest) -> Pod:
    """A pod as the API server returns it."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled, disruption = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    unschedulable = scheduled.get("reason") == "Unschedulable"
    containers = (
        container
        for container in status.get("containerStatuses") or ()
        if container["name"] in (names.CONTAINER, names.PYTORCHJOB_CONTAINER)
    )
    container: Manifest = next(containers, {})
    state, last_state = container.get("state") or {}, container.get("lastState") or {}
    waiting, last = state.get("waiting") or {}, last_state.get("terminated") or {}
    # One that waits to be started again in place has ended.
    terminated = state.get("terminated") or (last if waiting.get("reason") == "CrashLoopBackOff" else {})
    return Pod(
        name=metadata["name"],
        index=_parse_index(metadata.get("labels", {})),
        created=metadata["creationTimestamp"],
        phase=status.get("phase", "Pending"),
        node=pod["spec"].get("nodeName"),
        ip=status.get("podIP"),
        deleting="deletionTimestamp" in metadata,
        uncounted=_TRACKING in metadata.get("finalizers", ()),
        disruption=disruption.get("reason", "Disrupted") if disruption.get("status") == "True" else None,
        unschedulable=scheduled.get("message", "") if unschedulable else None,
        unschedulable_since=scheduled.get("lastTransitionTime") if unschedulable else None,
        waiting_reason=waiting.get("reason"),
        waiting_message=waiting.get("message", ""),
        running="running" in state,
        restarts=container.get("restartCount", 0),
        last_exit_code=(terminated or last).get("exitCode"),
        exit_code=terminated.get("exitCode"),
        exit_reason=terminated.get("reason", ""),
        held_since=status.get("startTime"),
        released_at=terminated.get("finishedAt") if status.get("phase") in ("Succeeded", "Failed") else None,
        termination=_parse_termination((terminated or last).get("message")),
    )  # fmt: skip


def _parse_index(labels: dict[str, str]) -> int:
    return int(labels.get(names.LABEL_REPLICA_INDEX, labels.get(names.LABEL_INDEX, "0")))


def _parse_termination(message: str | None) -> Termination | None:
    """The trainer writes JSON there; a process that died before could not."""
    try:
        return Termination.model_validate_json(message) if message else None
    except ValidationError:
        return None
