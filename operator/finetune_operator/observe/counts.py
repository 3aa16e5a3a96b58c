"""How often a job's training was interrupted: what the status says, and what has happened since. Pure."""

from dataclasses import dataclass

from finetune_api.exit_codes import ExitCode, Retry, parse_exit_code
from finetune_operator.observe.snapshot import Manifest, Pod, Snapshot


@dataclass(frozen=True)
class Counts:
    """Over every workload of the job."""

    restarts: int
    """Failures that were followed by a restart."""
    preemptions: int
    counted: tuple[str, ...]
    """Ends of pods that are in here, as long as the pod is there."""
    peer_losses: int
    """Times in a row that a gang fell apart without a failure, a preemption or a new checkpoint since the last time."""
    peer_losses_since: str
    """What there is of these three; once it changes, the row begins anew."""

    def are_written(self, status: Manifest) -> bool:
        """Whether the status says so already: what was counted by the pods outlives them."""
        return (self.restarts, self.preemptions) == (status.get("restarts", 0), status.get("preemptions", 0))


def count_ends(snapshot: Snapshot) -> Counts:
    """Each end is counted once: pods go, and their ends are seen by many passes.

    A gang ends as one: of its pods' ends only those that tell one interruption from another are counted. Pods of an
    elastic job end one by one.
    """
    before, workload = snapshot.status, snapshot.own_workload
    restarts, preemptions = before.get("restarts", 0), before.get("preemptions", 0)
    if workload is None:
        return Counts(restarts, preemptions, (), 0, "")
    known, losses = before.get("workload", {}), 0
    is_known = known.get("uid") == workload.uid
    counted = set(known.get("counted", ())) if is_known else set()
    first = min((pod.index for pod in snapshot.pods), default=0)
    ends = []
    for pod in snapshot.pods:
        is_preemption = pod.preempted if snapshot.is_elastic else _is_preemption(pod, first)
        is_failure = workload.kind == "PyTorchJob" and _is_failure(pod)
        is_loss = pod.index == first and pod.last_exit_code == ExitCode.PEER_LOST and not snapshot.is_elastic
        if is_preemption or is_failure or is_loss:
            ends.append(pod.last_end)
            if pod.last_end not in counted:
                preemptions += is_preemption
                restarts += is_failure
                losses += is_loss
    if workload.kind == "Job":
        base = known["restartsBefore"] if is_known else restarts
        # The failure that ended the job was not followed by a restart.
        restarts = max(restarts, base + workload.failed - (workload.finished == "Failed" and workload.failed > 0))
    since = f"{restarts} restarts, {preemptions} preemptions, step {find_saved_step(before)}"
    losses += known.get("peerLosses", 0) if since == known.get("peerLossesSince") else 0
    return Counts(restarts, preemptions, tuple(sorted(ends)), losses, since)


def find_saved_step(status: Manifest) -> int:
    """Of the newest complete checkpoint; 0: there is none."""
    step: int = status.get("checkpoints", {}).get("latest", {}).get("step", 0)
    return step


def _is_preemption(pod: Pod, first: int) -> bool:
    """All pods of a gang that is told to stop end after one checkpoint: the first one counts. A node that is gone without
    that counts wherever it was."""
    if pod.index == first:
        return pod.preempted
    return pod.disrupted and parse_exit_code(pod.last_exit_code or 0).retry is Retry.COUNTED


def _is_failure(pod: Pod) -> bool:
    code = pod.last_exit_code
    return code not in (None, 0) and not pod.disrupted and parse_exit_code(code or 0).retry is Retry.COUNTED
