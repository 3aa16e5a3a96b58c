"""Gathers the snapshot of one FineTuneJob: every read of a pass happens here."""

from dataclasses import replace
from datetime import UTC, datetime

from finetune_api.names import WORKLOADS
from finetune_operator.cluster.client import Cluster
from finetune_operator.manifests.metadata import Manifest, name_kind
from finetune_operator.observe.progress import ProgressPoller
from finetune_operator.observe.snapshot import Snapshot, Workload, parse_pod, parse_workload

_FAILED_CREATE = {"Job": "FailedCreate", "PyTorchJob": "FailedCreatePod"}


def gather_snapshot(
    cluster: Cluster,
    poller: ProgressPoller,
    finetunejob: Manifest,
    workload_kind: str,
    children: list[tuple[str, str]],
    metrics_port: int,
) -> Snapshot:
    """``children``: (kind, name) of what must exist before the workload; only looked up while there is none."""
    namespace, name = finetunejob["metadata"]["namespace"], finetunejob["metadata"]["name"]
    now = datetime.now(UTC)
    found_workload = cluster.fetch(workload_kind, namespace, name)
    if found_workload is None:
        found = {(kind, child): cluster.fetch(kind, namespace, child) for kind, child in children}
        return Snapshot(
            finetunejob, None, (), None, {key: value for key, value in found.items() if value is not None}, now
        )
    workload = parse_workload(found_workload)
    # Pods by their controller: a label alone could be on anybody's pod.
    owned = [pod for pod in cluster.list_pods(namespace, name) if _controller(pod) == workload.uid]
    pods = tuple(sorted(map(parse_pod, owned), key=lambda pod: (pod.created, pod.exit_code is None, pod.name)))
    progress = None
    refused = "" if pods or not workload.lacks_pods(now) else _find_refusal(cluster, namespace, workload)
    snapshot = Snapshot(finetunejob, workload, pods, None, {}, now, refused)
    for pod in pods:
        key = f"{namespace}/{pod.name}"
        if pod.running and pod.ip and pod is snapshot.leader:
            progress = poller.poll(key, pod.ip, metrics_port)
            if progress is not None and progress.run_id != finetunejob["metadata"]["uid"]:
                progress = None  # another process has the address by now
        elif pod.exit_code is not None:
            poller.forget(key)
    return replace(snapshot, progress=progress)


def _find_refusal(cluster: Cluster, namespace: str, workload: Workload) -> str:
    """Why the workload's controller can't make the pod: nothing but its Events tells."""
    events = cluster.list_warnings(namespace, workload.uid, _FAILED_CREATE[workload.kind])
    newest = max(events, key=lambda event: event.get("lastTimestamp") or "", default={"message": ""})
    return str(newest["message"])


def _controller(manifest: Manifest) -> str | None:
    owners = manifest["metadata"].get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def decide_children(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """(kind, name) of every manifest but the workload."""
    return [
        (name_kind(manifest), manifest["metadata"]["name"])
        for manifest in manifests
        if manifest["kind"] not in WORKLOADS
    ]
