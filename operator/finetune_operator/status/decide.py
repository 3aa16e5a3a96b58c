"""The whole status of a FineTuneJob, from the snapshot and the stage. Pure."""

from typing import Any

from finetune_api.names import Phase, Reason
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import output_claim_name
from finetune_operator.observe.counts import count_ends, find_saved_step
from finetune_operator.observe.snapshot import Manifest, Snapshot, Workload
from finetune_operator.plan.decide import Decided
from finetune_operator.status.conditions import decide_conditions, format_time
from finetune_operator.status.deadline import decide_activity
from finetune_operator.status.market import decide_market
from finetune_operator.status.spend import decide_spend
from finetune_operator.status.stage import RUNNING_PHASES, Stage


def decide_status(snapshot: Snapshot, stage: Stage, job: FineTuneJob | None, decided: Decided | None) -> Manifest:
    """``job`` and ``decided`` are None when the spec is invalid. What earlier passes wrote and this one doesn't know
    better is kept: pods and workloads go, their story stays."""
    before, generation = snapshot.status, snapshot.finetunejob["metadata"]["generation"]
    status: Manifest = {key: before[key] for key in KEPT if key in before}
    status["phase"] = stage.phase
    status["message"] = stage.message
    status["observedGeneration"] = generation
    status["conditions"] = decide_conditions(stage, before.get("conditions", []), generation, snapshot.now)
    if decided is not None and job is not None and "workload" not in before:  # what started is what counts
        status["plan"] = {
            "hash": decided.plan.training_hash(),
            "method": decided.plan.method.type,
            "objective": decided.plan.objective.type,
            "gpus": job.spec.resources.gpu.count * job.spec.parallelism.nodes,
            "nodes": job.spec.parallelism.nodes,
            "strategy": decided.plan.parallelism.strategy,
        }
    if snapshot.own_workload is not None:
        _add_workload(status, snapshot, snapshot.own_workload)
    if job is not None:
        _add_market(status, snapshot, job)
    _add_progress(status, snapshot, stage)
    if job is not None and decided is not None:
        status |= decide_spend(snapshot, job, decided)
        _add_result(status, snapshot, stage, job, decided)
    if stage.phase in (Phase.SUCCEEDED, Phase.FAILED) and stage.reason != Reason.INVALID_SPEC:
        status.setdefault("completionTime", format_time(snapshot.now))
    return status


KEPT = (
    "startTime",
    "completionTime",
    "plan",
    "workload",
    "progress",
    "checkpoints",
    "restarts",
    "preemptions",
    "lostSteps",
    "market",
    "marketSince",
    "marketPreemptions",
    "gpuHours",
    "cost",
    "spentUntil",
    "node",
    "artifacts",
)


def _add_workload(status: Manifest, snapshot: Snapshot, workload: Workload) -> None:
    before = snapshot.status
    known, counts = before.get("workload", {}), count_ends(snapshot)
    bases = {
        "restartsBefore": before.get("restarts", 0),
        "preemptionsBefore": before.get("preemptions", 0),
        "savedStepBefore": find_saved_step(before),
    }
    if known.get("uid") == workload.uid:
        bases = {name: known.get(name, 0) for name in bases}
    status["workload"] = {
        "kind": workload.kind,
        "name": workload.name,
        "uid": workload.uid,
        **bases,
        **decide_activity(snapshot, workload),
        "counted": list(counts.counted),
    }
    if counts.peer_losses:
        status["workload"] |= {"peerLosses": counts.peer_losses, "peerLossesSince": counts.peer_losses_since}
    status["restarts"], status["preemptions"] = counts.restarts, counts.preemptions
    status.setdefault("startTime", format_time(snapshot.now))
    pod = snapshot.leader
    if pod is not None and (pod.running or pod.exit_code is not None):  # being scheduled alone is not worth a write
        status["node"] = pod.node


def _add_market(status: Manifest, snapshot: Snapshot, job: FineTuneJob) -> None:
    if not job.spec.spot.enabled:
        return
    before = snapshot.status.get("market")
    market = decide_market(job.spec.spot, status, snapshot)
    status["market"] = market
    if market != before:
        status["marketSince"] = format_time(snapshot.now)
        status["marketPreemptions"] = status.get("preemptions", 0)


def _add_progress(status: Manifest, snapshot: Snapshot, stage: Stage) -> None:
    told = snapshot.progress
    if told is not None and told.lost_steps:
        status["lostSteps"] = told.lost_steps
    if told is not None and stage.phase in RUNNING_PHASES:
        news = _number_fields(told.step, told.total_steps, told.loss, told.eval_loss, told.tokens_per_second)
        news |= {
            "epoch": round(told.epoch, 2),
            "learningRate": _round(told.learning_rate),
            "etaSeconds": _whole(told.eta_seconds),
            "nodes": told.nodes if snapshot.is_elastic else None,
        }
        _replace_progress(status, news, snapshot)


def _add_result(status: Manifest, snapshot: Snapshot, stage: Stage, job: FineTuneJob, decided: Decided) -> None:
    """What the trainer said of itself, now or in its last words."""
    root = decided.plan.output.directory
    destination = job.spec.output.destination or f"pvc://{output_claim_name(job)}"

    def uri(path: str) -> str:
        return destination.rstrip("/") + path.removeprefix(root)

    told = snapshot.progress
    saved = told.checkpoint_step if told is not None else None
    words = snapshot.leader.termination if snapshot.leader is not None else None
    # Until the Job controller has said what follows, the last words wait: they are not worth a write of their own.
    has_ended = stage.phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.PREEMPTED) or stage.reason == Reason.RESTARTING
    if words is not None and has_ended:
        saved = words.checkpoint_step
        if words.lost_steps:
            status["lostSteps"] = words.lost_steps
        if stage.phase in (Phase.SUCCEEDED, Phase.FAILED):
            news = _number_fields(words.step, words.total_steps, words.loss, words.eval_loss, words.tokens_per_second)
            kept = {key: value for key, value in status.get("progress", {}).items() if key in ("epoch", "learningRate")}
            _replace_progress(status, kept | news, snapshot)
        if words.artifacts:
            status["artifacts"] = [
                {"type": artifact.type, "uri": uri(artifact.path), "bytes": artifact.bytes, "sha256": artifact.sha256}
                for artifact in words.artifacts
            ]
    if saved is not None:
        storage, checkpoint = job.spec.checkpoint.storage, decided.plan.checkpoint
        if checkpoint.is_remote:
            place = checkpoint.directory
        else:
            place = f"{storage.rstrip('/')}/{decided.plan.job.run_id}" if storage else uri(checkpoint.directory)
        status["checkpoints"] = {"latest": {"step": saved, "uri": f"{place}/checkpoint-{saved}"}}


def _replace_progress(status: Manifest, news: Manifest, snapshot: Snapshot) -> None:
    """New figures get a new time; the same figures are no news, and cost no write."""
    news = {key: value for key, value in news.items() if value is not None}
    old = {key: value for key, value in status.get("progress", {}).items() if key != "updatedAt"}
    if news != old:
        status["progress"] = news | {"updatedAt": format_time(snapshot.now)}


def _number_fields(step: int, total: int, loss: float | None, eval_loss: float | None, speed: float | None) -> Manifest:
    return {
        "step": step,
        "totalSteps": total,
        "percent": 100 * step // total if total else 0,
        "loss": _round(loss),
        "evalLoss": _round(eval_loss),
        "tokensPerSecond": _whole(speed),
    }


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
