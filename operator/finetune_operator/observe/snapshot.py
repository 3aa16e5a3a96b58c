"""What is, at one moment: the FineTuneJob, its workload, pods and progress. Decisions see nothing else."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from finetune_api import names
from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Progress, Termination

Manifest = dict[str, Any]

# The Job controller makes a pod in a moment; after this something is in its way.
POD_GRACE = timedelta(seconds=5)


@dataclass(frozen=True)
class Workload:
    """The Job."""

    name: str
    uid: str
    owner_uid: str | None
    spec: Manifest
    suspended: bool
    """The Job controller has stopped it; spec.suspend is what was asked."""
    failed: int
    """Failed pods that count towards backoffLimit."""
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
    created: str
    phase: str
    node: str | None
    ip: str | None
    deleting: bool
    disrupted: bool
    unschedulable: str | None
    """The scheduler's message."""
    unschedulable_since: str | None
    waiting_reason: str | None
    waiting_message: str
    running: bool
    exit_code: int | None
    exit_reason: str
    """The kubelet's word, such as OOMKilled."""
    termination: Termination | None
    """The trainer's last words."""

    @property
    def preempted(self) -> bool:
        """Ended by a disruption, or by itself after a checkpoint; not because it was deleted (suspend)."""
        return self.disrupted or (self.exit_code == ExitCode.PREEMPTED and not self.deleting)


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
    def own_workload(self) -> Workload | None:
        """The workload, unless it is somebody else's of the same name."""
        return self.workload if self.workload is not None and self.workload.owner_uid == self.uid else None

    @property
    def newest_pod(self) -> Pod | None:
        return self.pods[-1] if self.pods else None


def parse_workload(job: Manifest) -> Workload:
    """A Job as the API server returns it."""
    metadata, status = job["metadata"], job.get("status") or {}
    owner = next((owner for owner in metadata.get("ownerReferences", ()) if owner.get("controller")), None)
    holding = {
        condition["type"]: condition for condition in status.get("conditions") or () if condition["status"] == "True"
    }
    finished = next((type_ for type_ in ("Complete", "Failed") if type_ in holding), None)
    return Workload(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=owner["uid"] if owner else None,
        spec=job["spec"],
        suspended="Suspended" in holding,
        failed=status.get("failed") or 0,
        finished=finished,
        reason=holding[finished].get("reason", "") if finished else "",
        message=holding[finished].get("message", "") if finished else "",
        deleting="deletionTimestamp" in metadata,
        started=status.get("startTime"),
    )


def parse_pod(pod: Manifest) -> Pod:
    """A pod as the API server returns it."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled, disruption = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    unschedulable = scheduled.get("reason") == "Unschedulable"
    states = (
        container.get("state") or {}
        for container in status.get("containerStatuses") or ()
        if container["name"] == names.CONTAINER
    )
    state = next(states, {})
    waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
    return Pod(
        name=metadata["name"],
        created=metadata["creationTimestamp"],
        phase=status.get("phase", "Pending"),
        node=pod["spec"].get("nodeName"),
        ip=status.get("podIP"),
        deleting="deletionTimestamp" in metadata,
        disrupted=disruption.get("status") == "True",
        unschedulable=scheduled.get("message", "") if unschedulable else None,
        unschedulable_since=scheduled.get("lastTransitionTime") if unschedulable else None,
        waiting_reason=waiting.get("reason"),
        waiting_message=waiting.get("message", ""),
        running="running" in state,
        exit_code=terminated.get("exitCode"),
        exit_reason=terminated.get("reason", ""),
        termination=_parse_termination(terminated.get("message")),
    )  # fmt: skip


def _parse_termination(message: str | None) -> Termination | None:
    """The trainer writes JSON there; a process that died before could not."""
    try:
        return Termination.model_validate_json(message) if message else None
    except ValidationError:
        return None
