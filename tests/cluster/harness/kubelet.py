"""A test kubelet: a fake for a node.

The pods bound to it (by the real scheduler) get the statuses that a node's kubelet would give them, so that the real
controllers act on them. How containers run is the runtime's business: see containers.py. Unlike a node's, it has no
server: `kubectl logs` and `exec` don't work, `logs` does.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from kubernetes.client import ApiException

from tests.cluster.harness.api import Api, Object
from tests.cluster.harness.containers import Runtime
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.pod_worker import PodWorker, now
from tests.cluster.harness.waiting import wait_until

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_RENEW_SECONDS = 10
_NODE_INFO = {
    "machineID": "test",
    "systemUUID": "test",
    "bootID": "test",
    "kernelVersion": "test",
    "osImage": "test",
    "containerRuntimeVersion": "test://",
    "kubeletVersion": "test",
    "kubeProxyVersion": "test",
    "operatingSystem": "linux",
    "architecture": "test",
}
_MAX_PODS = 1000
_numbers = itertools.count(1)


class Kubelet:
    """Registers the node `name` on start(); stop() removes it and its pods.

    `capacity` adds to cpu, memory and pods, for instance {"nvidia.com/gpu": "8"}.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        runtime: Runtime,
        name: str = "test-node",
        capacity: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        taints: list[dict[str, str]] | None = None,
    ) -> None:
        self.name = name
        self._api = Api(control_plane.user_kubeconfig("test-kubelet"))
        self._runtime = runtime
        self._capacity = {"cpu": "64", "memory": "512Gi", "pods": str(_MAX_PODS), "ephemeral-storage": "1Ti"} | (
            capacity or {}
        )
        self._labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"} | (labels or {})
        self._taints = taints or []
        self._watch = self._api.watch("/api/v1/pods", fieldSelector=f"spec.nodeName={name}")
        self._workers: dict[str, PodWorker] = {}
        self._pool = ThreadPoolExecutor(_MAX_PODS + 2, thread_name_prefix=name)  # the pods, the watch and the lease
        self._tasks: list[Future[None]] = []
        self._stopping = threading.Event()

    def start(self) -> None:
        """Returns when the scheduler may bind pods to the node."""
        self.folder = Path(tempfile.mkdtemp(prefix="finetune-kubelet-"))
        self._register()
        self._tasks.append(self._pool.submit(self._follow_pods))
        self._tasks.append(self._pool.submit(self._renew_lease))
        wait_until(self._is_schedulable, f"node {self.name} without the taint not-ready")

    def stop(self) -> None:
        """Kills what runs here; raises the first error that one of the kubelet's threads had."""
        self._stopping.set()
        self._watch.stop()
        for worker in list(self._workers.values()):
            worker.kill()
        self._pool.shutdown()
        for pod in self._api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}"):
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
            self._delete(path)
        self._delete(f"/api/v1/nodes/{self.name}")
        self._delete(f"{_LEASES}/{self.name}")
        shutil.rmtree(self.folder)
        for task in self._tasks:
            task.result()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)  # a start that fails half-way leaves nothing behind
            self.start()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def logs(self, namespace: str, pod: str, container: str | None = None) -> str:
        """What the pod's containers (or that one) printed; empty when none has run here."""
        files = sorted((self.folder / "logs" / namespace / pod).glob(f"{container or '*'}.log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def _register(self) -> None:
        metadata = {"name": self.name, "labels": self._labels}
        self._api.post("/api/v1/nodes", {"kind": "Node", "metadata": metadata, "spec": {"taints": self._taints}})
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now()}
        status = {
            "capacity": self._capacity,
            "allocatable": self._capacity,
            "conditions": [ready | {"lastHeartbeatTime": now()}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": self.name}],
            "nodeInfo": _NODE_INFO,
        }
        self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status})
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": _now_micro()}
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name}, "spec": spec}
        self._api.post(_LEASES, lease)

    def _is_schedulable(self) -> bool:
        taints = self._api.get(f"/api/v1/nodes/{self.name}")["spec"].get("taints", [])
        return not any(taint["key"].startswith("node.kubernetes.io/") for taint in taints)

    def _renew_lease(self) -> None:
        while not self._stopping.wait(_RENEW_SECONDS):
            self._api.patch(f"{_LEASES}/{self.name}", {"spec": {"renewTime": _now_micro()}})

    def _follow_pods(self) -> None:
        for event, pod in self._watch:
            uid, metadata = pod["metadata"]["uid"], pod["metadata"]
            worker = self._workers.get(uid)
            if event == "DELETED":
                if worker:
                    worker.kill()
                    del self._workers[uid]
                continue
            if worker is None and pod["status"]["phase"] == "Pending":
                worker = self._workers[uid] = self._start_worker(pod)
            if worker and "deletionTimestamp" in metadata:
                worker.delete(metadata["deletionGracePeriodSeconds"])

    def _start_worker(self, pod: Object) -> PodWorker:
        metadata, number = pod["metadata"], next(_numbers)
        folder = self.folder / "pods" / metadata["uid"]
        logs = self.folder / "logs" / metadata["namespace"] / metadata["name"]
        folder.mkdir(parents=True)
        logs.mkdir(parents=True, exist_ok=True)
        # Its own loopback address for each pod, so that two can listen on one port; the process number keeps apart the
        # pods of tests that run side by side.
        pod_ip = f"127.{1 + os.getpid() % 254}.{number // 250 % 256}.{1 + number % 250}"
        worker = PodWorker(self._api, self._runtime, pod, pod_ip, folder, logs)
        self._tasks.append(self._pool.submit(worker.run))
        return worker

    def _delete(self, path: str) -> None:
        try:
            self._api.delete(path, {"gracePeriodSeconds": 0})
        except ApiException as error:
            if error.status != 404:  # a controller may have been faster
                raise


def _now_micro() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
