"""Objects as the API server would return them, for decisions on snapshots."""

from datetime import UTC, datetime
from typing import Any

from finetune_operator.manifests.build import build_manifests
from finetune_operator.observe.snapshot import Snapshot, parse_pod, parse_workload
from finetune_operator.plan.decide import Decided, decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.run_state import RunState
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob

UID = "11111111-1111-1111-1111-111111111111"
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
SPEC = {"model": {"source": "hf://org/model"}, "dataset": {"source": "pvc://data/train.jsonl"}}


def build_finetunejob(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": "bot", "namespace": "team", "uid": UID, "generation": 1, "resourceVersion": "7"}
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": SPEC | spec}
    return body if status is None else body | {"status": status}


def build_workload(owner: str = UID, uid: str = "job-1", failed: int = 0, finished: tuple[str, str] | None = None, deleting: bool = False, market: str | None = None, **spec: Any) -> dict[str, Any]:  # fmt: skip
    metadata = {"name": "bot", "uid": uid, "ownerReferences": [{"uid": owner, "controller": True}]}
    if market is not None:
        metadata["annotations"] = {"finetune.dev/market": market}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T11:59:00Z"
    conditions = (
        [{"type": finished[0], "status": "True", "reason": finished[1], "message": "Job's words"}] if finished else []
    )
    return {
        "kind": "Job",
        "metadata": metadata,
        "spec": {"suspend": False} | spec,
        "status": {"failed": failed, "conditions": conditions},
    }


def build_pytorchjob(uid: str = "job-1", conditions: tuple[str, ...] = (), **policy: Any) -> dict[str, Any]:
    metadata = {"name": "bot", "uid": uid, "ownerReferences": [{"uid": UID, "controller": True}]}
    return {
        "kind": "PyTorchJob",
        "metadata": metadata,
        "spec": {"runPolicy": {"suspend": False} | policy},
        "status": {"conditions": [{"type": type_, "status": "True"} for type_ in conditions]},
    }


def build_pod(state: dict[str, Any] | None = None, name: str = "bot-1", created: str = "2026-01-01T11:00:00Z", **fields: Any) -> dict[str, Any]:  # fmt: skip
    status: dict[str, Any] = {"phase": "Running", "podIP": "10.0.0.1"}
    if state is not None:
        container = {"name": "trainer", "state": state} | fields.pop("container", {})
        status["containerStatuses"] = [container]
    metadata = {"name": name, "creationTimestamp": created} | fields.pop("metadata", {})
    return {"metadata": metadata, "spec": {"nodeName": "gpu-node"}, "status": status | fields}


def exited(code: int, message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}}


RUNNING = {"running": {"startedAt": "2026-01-01T11:01:00Z"}}


def build_snapshot(finetunejob: dict[str, Any], workload: dict[str, Any] | None = None, pods: list[dict[str, Any]] = [], **fields: Any) -> Snapshot:  # noqa: B006  # fmt: skip
    parsed = parse_workload(workload) if workload else None
    return Snapshot(finetunejob, parsed, tuple(map(parse_pod, pods)), fields.get("progress"), fields.get("children", {}), fields.get("now", NOW), fields.get("pod_refusal", ""))  # fmt: skip


def decide(finetunejob: dict[str, Any], run: RunState | None = None) -> tuple[Decided, list[dict[str, Any]]]:
    job, settings, layout = parse_finetunejob(finetunejob), Settings(), ContainerLayout()
    decided = decide_plan(job, settings, layout)
    return decided, build_manifests(job, decided, settings, layout, run)
