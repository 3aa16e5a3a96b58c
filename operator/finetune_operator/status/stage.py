"""Where a FineTuneJob stands: one phase, one reason, one message. The first policy that has an answer decides."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.errors import Problem
from finetune_api.exit_codes import Retry, parse_exit_code
from finetune_api.names import Condition, Phase, Reason
from finetune_api.spec import RunPolicy
from finetune_operator.intent import Obstacle
from finetune_operator.observe.counts import count_ends
from finetune_operator.observe.snapshot import POD_GRACE, Manifest, Pod, Snapshot
from finetune_operator.status.deadline import is_overdue

# A pod is unschedulable for a moment while its claims are bound; people only want to know when it lasts.
UNSCHEDULABLE_GRACE = timedelta(seconds=15)

PHASE_OF_STAGE = {
    "preparing": Phase.PREPARING,
    "training": Phase.RUNNING,
    "checkpointing": Phase.CHECKPOINTING,
    "evaluating": Phase.EVALUATING,
    "exporting": Phase.EXPORTING,
    "done": Phase.EXPORTING,
}
RUNNING_PHASES = frozenset({*PHASE_OF_STAGE.values(), Phase.RESUMING})
IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError"})
# The end of a pod is known before what its workload makes of it.
LOOK_AGAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Stage:
    """Phase, reason and message, used verbatim for status, conditions and Events."""

    phase: str
    reason: str
    message: str
    look_again_seconds: float | None = None
    """When time alone changes the answer."""


OVERDUE = Stage(Phase.FAILED, Reason.DEADLINE_EXCEEDED, "Active for longer than runPolicy.activeDeadline.")


def decide_stage(snapshot: Snapshot, problems: list[Problem], obstacle: Obstacle | None, refusal: str | None) -> Stage:
    """``refusal``: the API server's words when it refused a child for good (quota, admission policy)."""
    if end := _decide_recorded_end(snapshot) or _decide_end(snapshot) or decide_failure(snapshot):
        return end
    if problems:
        return Stage(Phase.FAILED, Reason.INVALID_SPEC, "; ".join(map(str, problems)))
    if refusal is not None:
        return Stage(Phase.PENDING, Reason.REFUSED, refusal)
    if obstacle is not None:
        return Stage(Phase.PENDING, obstacle.reason, obstacle.message)
    return _decide_suspended(snapshot) or _decide_queued(snapshot) or _decide_running(snapshot)


def is_finished(status: Manifest) -> bool:
    """Whether the job's end is written down. It is never run again, whatever becomes of its children.

    An invalid spec is no end: nothing ran yet, and a mended spec is run.
    """
    return is_true(status, Condition.COMPLETE) or (
        is_true(status, Condition.FAILED) and is_true(status, Condition.VALIDATED)
    )


def _decide_recorded_end(snapshot: Snapshot) -> Stage | None:
    status = snapshot.status
    if not is_finished(status):
        return None
    type_ = Condition.COMPLETE if is_true(status, Condition.COMPLETE) else Condition.FAILED
    return Stage(status["phase"], find_reason(status, type_), status["message"])


def _decide_end(snapshot: Snapshot) -> Stage | None:
    workload = snapshot.own_workload
    if workload is None or workload.finished is None:
        return None
    if workload.finished == "Complete":
        return Stage(Phase.SUCCEEDED, Reason.SUCCEEDED, _last_words(snapshot.leader) or "The model is trained.")
    if workload.reason == "DeadlineExceeded":
        return OVERDUE
    culprit = snapshot.telling_pod
    if culprit is None or not culprit.exit_code:
        return Stage(Phase.FAILED, workload.reason or Reason.BACKOFF_LIMIT_EXCEEDED, workload.message)
    words = describe_exit(culprit)
    if workload.reason == "PodFailurePolicy":
        return Stage(Phase.FAILED, parse_exit_code(culprit.exit_code).reason, words)
    return _fail_too_often(words)


def _fail_too_often(words: str) -> Stage:
    """``words``: what ended the last pod."""
    return Stage(Phase.FAILED, Reason.BACKOFF_LIMIT_EXCEEDED, f"Failed more often than runPolicy.backoffLimit allows; the last time: {words}")  # fmt: skip


def decide_failure(snapshot: Snapshot) -> Stage | None:
    """Why the job has failed although its workload would go on: what Kubernetes doesn't judge."""
    workload = snapshot.own_workload
    if workload is None or workload.finished:
        return None
    spec, counts = snapshot.finetunejob["spec"], count_ends(snapshot)
    if is_overdue(snapshot, workload):
        return OVERDUE
    if snapshot.overspending is not None and spec["budget"].get("onExceeded") == "fail":
        return Stage(Phase.FAILED, Reason.BUDGET_EXCEEDED, snapshot.overspending)
    allowed = spec.get("spot", {}).get("maxPreemptions")
    if allowed is not None and counts.preemptions > allowed:
        return Stage(Phase.FAILED, Reason.TOO_MANY_PREEMPTIONS, f"Preempted {counts.preemptions} times; spot.maxPreemptions allows {allowed}.")  # fmt: skip
    backoff_limit = spec.get("runPolicy", {}).get("backoffLimit", RunPolicy().backoff_limit)
    if counts.peer_losses > backoff_limit:
        return Stage(Phase.FAILED, Reason.BACKOFF_LIMIT_EXCEEDED, f"The nodes lost each other {counts.peer_losses} times in a row without a new checkpoint, and none of them failed: look at the network between them (network.fabric, NetworkPolicies, the nodes' health).")  # fmt: skip
    if workload.kind == "Job":
        return None
    for pod in snapshot.current_pods:
        meaning = parse_exit_code(pod.last_exit_code or 0)
        if pod.last_exit_code and meaning.retry is Retry.NEVER:
            return Stage(Phase.FAILED, meaning.reason, describe_exit(pod))
    if counts.restarts > backoff_limit:
        return _fail_too_often(describe_exit(snapshot.telling_pod) if snapshot.telling_pod is not None else "")
    return None


def _decide_suspended(snapshot: Snapshot) -> Stage | None:
    if not snapshot.is_paused:
        return None
    if snapshot.overspending is not None:
        return Stage(Phase.SUSPENDED, Reason.BUDGET_EXCEEDED, f"{snapshot.overspending} Raise it to go on from the last checkpoint.")  # fmt: skip
    return Stage(Phase.SUSPENDED, Reason.SUSPENDED, "Suspended; set runPolicy.suspend to false to go on from the last checkpoint.")  # fmt: skip


def _decide_queued(snapshot: Snapshot) -> Stage | None:
    queue = snapshot.finetunejob["spec"].get("resources", {}).get("queueName")
    workload = snapshot.own_workload
    if queue is None or workload is None or not workload.policy.get("suspend"):
        return None
    return Stage(Phase.QUEUED, Reason.QUEUED, f"Waits for its turn in Kueue's LocalQueue {queue}.")


def _decide_running(snapshot: Snapshot) -> Stage:
    pod = snapshot.telling_pod
    created = Stage(Phase.PENDING, Reason.CREATED, "The workload is created; its pod is not there yet.")
    if interruption := _find_interruption(snapshot):
        # Until the next pod runs, what happened to the last one is what there is to tell.
        created = Stage(snapshot.status["phase"], interruption, snapshot.status["message"])
    if pod is None:
        if snapshot.pod_refusal:
            return Stage(Phase.PENDING, Reason.POD_REFUSED, _describe_refusal(snapshot.pod_refusal))
        return replace(created, look_again_seconds=POD_GRACE.total_seconds())
    if pod.exit_code is not None:
        return _decide_between_pods(snapshot, pod)
    if pod.running:
        return _decide_training(snapshot)
    if pod.unschedulable is not None:
        lasting = snapshot.now - datetime.fromisoformat(pod.unschedulable_since or "") - UNSCHEDULABLE_GRACE
        if lasting >= timedelta(0):
            return Stage(Phase.PENDING, Reason.UNSCHEDULABLE, f"No node fits: {pod.unschedulable}")
        return replace(created, look_again_seconds=1 - lasting.total_seconds())
    if pod.waiting_reason in IMAGE_REASONS:
        return Stage(Phase.PENDING, Reason.IMAGE_PULL, pod.waiting_message or f"The image can't be pulled: {pod.waiting_reason}")  # fmt: skip
    if pod.waiting_reason in CONFIG_REASONS:
        return Stage(Phase.PENDING, Reason.CONTAINER_CONFIG, f"{pod.waiting_reason}: {pod.waiting_message}")
    return created


def _decide_between_pods(snapshot: Snapshot, pod: Pod) -> Stage:
    """The newest pod has ended, and the Job controller has not said yet what follows.

    Only when it is sure that another pod follows is that told; else the job stands where it stood.
    """
    workload = snapshot.own_workload
    assert workload is not None and pod.exit_code is not None
    retry = parse_exit_code(pod.exit_code).retry
    counted = [
        p
        for p in snapshot.pods
        if p.exit_code and not p.disrupted and parse_exit_code(p.exit_code).retry is Retry.COUNTED
    ]
    which = f"node {pod.index}: " if len(snapshot.current_pods) > 1 else ""
    told = f"Starts again after: {which}{describe_exit(pod)}"
    if retry is Retry.FREE or pod.disrupted:
        return Stage(Phase.PREEMPTED, Reason.PREEMPTED, told)
    if retry is Retry.COUNTED and (workload.failed >= len(counted) or workload.kind == "PyTorchJob"):
        return Stage(Phase.PENDING, Reason.RESTARTING, told)
    return replace(_decide_training(snapshot), look_again_seconds=LOOK_AGAIN_SECONDS)


def _find_interruption(snapshot: Snapshot) -> str | None:
    reason = find_reason(snapshot.status)
    return reason if reason in (Reason.PREEMPTED, Reason.RESTARTING) else None


def _decide_training(snapshot: Snapshot) -> Stage:
    """By the trainer's own word; between two words it is where it was."""
    progress = snapshot.progress
    saved = snapshot.status.get("checkpoints", {}).get("latest")
    stood_still = _find_interruption(snapshot) or snapshot.status.get("phase") == Phase.RESUMING
    if stood_still and saved is not None and (progress is None or progress.stage == "preparing"):
        return Stage(Phase.RESUMING, Reason.RESUMING, f"Goes on from the checkpoint of step {saved['step']}.")
    if progress is None:
        phase = snapshot.status.get("phase")
        if phase in RUNNING_PHASES:
            return Stage(phase, Reason.TRAINING if phase != Phase.PREPARING else Reason.PREPARING, snapshot.status["message"])  # fmt: skip
        return Stage(Phase.PREPARING, Reason.PREPARING, "The trainer loads model and data.")
    phase = PHASE_OF_STAGE[progress.stage]
    if phase == Phase.PREPARING:
        return Stage(phase, Reason.PREPARING, "The trainer loads model and data.")
    loss = f", loss {progress.loss:.4g}" if progress.loss is not None else ""
    left = f", about {_show_seconds(progress.eta_seconds)} left" if progress.eta_seconds else ""
    return Stage(phase, Reason.TRAINING, f"Step {progress.step} of {progress.total_steps}{loss}{left}.")


def describe_exit(pod: Pod) -> str:
    """What ended a pod, for people: the trainer's own words where it had any."""
    if words := _last_words(pod):
        return words
    if pod.disruption is not None:
        return f"{pod.disruption} took the pod away before the trainer could save"
    if pod.exit_reason == "OOMKilled":
        return "the kernel killed the trainer for using more than resources.memory; raise it, or lower perDeviceBatchSize or maxLength"
    return parse_exit_code(pod.exit_code or pod.last_exit_code or 0).description


def _describe_refusal(words: str) -> str:
    """The Job controller's words without the pod's name, which is another at each try."""
    pod, found, reason = words.removeprefix("Error creating: ").partition(" is forbidden: ")
    return f"The pod is forbidden: {reason}" if found else f"The pod can't be made: {pod}"


def find_reason(status: Manifest, type_: str = Condition.PROGRESSING) -> str:
    """Of a condition, which is by default the one that says why the job stands where it stands; empty without it."""
    reasons = (condition["reason"] for condition in status.get("conditions", ()) if condition["type"] == type_)
    return next(reasons, "")


def is_true(status: Manifest, type_: str) -> bool:
    """Whether a condition of a status holds."""
    return any(
        condition["type"] == type_ and condition["status"] == "True" for condition in status.get("conditions", ())
    )


def _last_words(pod: Pod | None) -> str:
    return pod.termination.message if pod is not None and pod.termination is not None else ""


def _show_seconds(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
