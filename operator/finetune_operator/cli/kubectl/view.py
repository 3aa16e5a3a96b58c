"""A FineTuneJob as a person reads it. Pure: objects of the API server in, text out."""

from datetime import datetime
from typing import Any

from finetune_api import names
from finetune_api.names import Condition, Phase

Object = dict[str, Any]

_NEXT = {
    Condition.FAILED: "kubectl finetune logs {name}; mend the spec and create it anew",
    Condition.SUSPENDED: "kubectl finetune resume {name}",
}


def is_true(job: Object, type_: str) -> bool:
    """Whether a condition holds, and was decided on the spec as it is now."""
    generation = job["metadata"]["generation"]
    return any(
        each["type"] == type_ and each["status"] == "True" and each["observedGeneration"] == generation
        for each in _status(job).get("conditions", ())
    )


def list_card(job: Object, now: datetime) -> list[tuple[str, str]]:
    """(label, text) of what matters now."""
    name, status = job["metadata"]["name"], _status(job)
    progress, plan = status.get("progress", {}), status.get("plan", {})
    card = [
        ("FineTuneJob", f"{job['metadata']['namespace']}/{name}"),
        ("Phase", status.get("phase", Phase.PENDING)),
        ("Message", status.get("message", "The operator has not seen it yet.")),
    ]
    if plan:
        devices = {0: "the CPU", 1: "1 GPU"}.get(plan["gpus"], f"{plan['gpus']} GPUs")
        card.append(("Plan", f"{plan['method']}, {plan['objective']}, {plan['strategy']} on {devices}"))
    if progress.get("totalSteps"):
        card.append(("Progress", describe_progress(job)))
    if latest := status.get("checkpoints", {}).get("latest"):
        card.append(("Checkpoint", f"step {latest['step']}, {latest['uri']}"))
    if status.get("restarts") or status.get("preemptions"):
        card.append(
            ("Interrupted", f"{status.get('restarts', 0)} restarts, {status.get('preemptions', 0)} preemptions")
        )
    card += [
        ("Artifact", f"{each['type']}, {each['uri']} ({each['bytes'] / 2**20:.1f} MiB)")
        for each in status.get("artifacts", ())
    ]
    if "startTime" in status:
        began = datetime.fromisoformat(status["startTime"])
        ended = datetime.fromisoformat(status["completionTime"]) if "completionTime" in status else now
        card.append(
            ("Took" if "completionTime" in status else "Running for", format_seconds((ended - began).total_seconds()))
        )
    card += [("Next", text.format(name=name)) for type_, text in _NEXT.items() if is_true(job, type_)]
    return card


def describe_job(job: Object) -> str:
    """One line: the phase, and how far it is or what is the matter."""
    status = _status(job)
    phase, message = status.get("phase", Phase.PENDING), status.get("message", "The operator has not seen it yet.")
    if status.get("progress", {}).get("totalSteps") and phase not in (Phase.PENDING, Phase.FAILED, Phase.SUSPENDED):
        return f"{phase}: {describe_progress(job)}"
    return message if message.startswith(phase) else f"{phase}: {message}"


def describe_progress(job: Object) -> str:
    """One line: step, losses, speed and time left."""
    progress = _status(job).get("progress", {})
    parts = [f"step {progress.get('step', 0)} of {progress.get('totalSteps', '?')}"]
    for key, text in (("loss", "loss {:.4g}"), ("evalLoss", "eval loss {:.4g}"), ("tokensPerSecond", "{} tokens/s")):
        if key in progress:
            parts.append(text.format(progress[key]))
    if progress.get("etaSeconds"):
        parts.append(f"{format_seconds(progress['etaSeconds'])} left")
    return ", ".join(parts)


def list_events(job: Object, children: set[str], events: list[Object], now: datetime) -> list[tuple[str, ...]]:
    """(age, type, reason, object, message) of the Events about a job and its children, oldest first.

    :param children: uids of its workload and pods.
    """
    wanted = children | {job["metadata"]["uid"]}
    about = sorted((each for each in events if each["involvedObject"].get("uid") in wanted), key=_event_time)
    return [
        (
            format_seconds((now - _event_time(each)).total_seconds()),
            each["type"],
            each["reason"],
            f"{each['involvedObject']['kind'].lower()}/{each['involvedObject']['name']}",
            each["message"].strip(),
        )
        for each in about
    ]


def choose_pod(job: Object, pods: list[Object]) -> Object:
    """The newest pod that trains it.

    Raises LookupError with the reason when there is none.
    """
    if not pods:
        raise LookupError(
            f"{job['metadata']['name']} has no pod: {_status(job).get('message', 'the operator has not seen it yet')}"
        )
    return max(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))


def pod_selector(name: str) -> str:
    """The label selector of a job's pods and workload."""
    return f"{names.LABEL_JOB_NAME}={name}"


def format_seconds(seconds: float) -> str:
    """As kubectl writes ages: 45s, 3m20s, 2h05m, 4d."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _status(job: Object) -> Object:
    status: Object = job.get("status") or {}
    return status


def _event_time(event: Object) -> datetime:
    return datetime.fromisoformat(
        event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    )
