"""One pod's life on a test kubelet, from ContainerCreating to its last status."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from kubernetes.client import ApiException

from tests.cluster.harness.api import STRATEGIC_PATCH, Api, Object
from tests.cluster.harness.containers import Container, Runtime
from tests.cluster.harness.pod_resolver import ContainerConfigError, PodResolver

_RETRY_SECONDS = 0.5  # a kubelet backs off for longer, which no test would wait for


class PodWorker:
    """Runs a pod's containers and reports their states to the API server.

    Init containers run one after the other (sidecars, restartPolicy Always there, are not known), then all containers
    together. Probes are not run: a container that runs is ready.
    """

    def __init__(self, api: Api, runtime: Runtime, pod: Object, pod_ip: str, folder: Path, logs: Path) -> None:
        self._api, self._runtime, self._pod, self._pod_ip = api, runtime, pod, pod_ip
        self._folder, self._logs = folder, logs
        self._path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self._resolver = PodResolver(api, pod, pod_ip, folder)
        self._lock = threading.Lock()
        self._report_lock = threading.Lock()
        self._running: set[Container] = set()
        self._deletion = threading.Event()
        self._is_done = False
        self._started_at = now()
        inits, containers = pod["spec"].get("initContainers", []), pod["spec"]["containers"]
        waiting = {"waiting": {"reason": "PodInitializing" if inits else "ContainerCreating"}}
        self._statuses = {each["name"]: _build_status(each, waiting) for each in [*inits, *containers]}

    def run(self) -> None:
        """Blocks until the pod has its last status; meant for a thread of its own."""
        with contextlib.suppress(_PodIsGone):
            self._report("Pending")
            phase = self._run_containers()
            with self._lock:
                self._is_done = True
            self._report(phase)
            if self._deletion.is_set():
                self._remove()

    def delete(self, grace_seconds: float) -> None:
        """The pod got a deletionTimestamp: ends the containers, gently at first."""
        with self._lock:
            is_first, is_done = not self._deletion.is_set(), self._is_done
            self._deletion.set()
            for container in self._running if is_first else ():
                container.terminate()
        if is_done and is_first:
            self._remove()
        elif is_first:
            timer = threading.Timer(grace_seconds, self.kill)
            timer.daemon = True
            timer.start()

    def kill(self) -> None:
        """Ends the containers at once."""
        with self._lock:
            self._deletion.set()
            for container in self._running:
                container.kill()

    def _run_containers(self) -> str:
        """The pod's final phase."""
        spec = self._pod["spec"]
        for container in spec.get("initContainers", ()):
            # As in Kubernetes: an init container that ends with 0 is not started again under any policy.
            policy = "Never" if spec["restartPolicy"] == "Never" else "OnFailure"
            if self._run_container(container, policy) != 0:
                return "Failed"
        with ThreadPoolExecutor(len(spec["containers"])) as pool:
            codes = list(pool.map(lambda each: self._run_container(each, spec["restartPolicy"]), spec["containers"]))
        return "Succeeded" if set(codes) == {0} else "Failed"

    def _run_container(self, container: Object, restart_policy: str) -> int | None:
        """The last exit code; None when the pod was deleted before the container could start."""
        status = self._statuses[container["name"]]
        while (started := self._start(container)) is not None:
            status |= {"ready": True, "started": True, "state": {"running": {"startedAt": now()}}}
            status["containerID"] = (
                f"test://{self._pod['metadata']['uid']}/{container['name']}/{status['restartCount']}"
            )
            self._report("Running" if container in self._pod["spec"]["containers"] else "Pending")
            code = started.wait()
            with self._lock:
                self._running.discard(started)
            terminated = {
                "exitCode": code,
                "reason": "Error" if code else "Completed",
                "message": started.read_message(),
                "startedAt": status["state"]["running"]["startedAt"],
                "finishedAt": now(),
                "containerID": status["containerID"],
            }
            status |= {"ready": False, "started": False, "state": {"terminated": terminated}}
            restart = restart_policy == "Always" or (restart_policy == "OnFailure" and code != 0)
            if not restart or self._deletion.is_set():
                return code
            status |= {"restartCount": status["restartCount"] + 1, "lastState": status["state"]}
            status["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
            self._report("Running")
            self._deletion.wait(_RETRY_SECONDS)
        return None

    def _start(self, container: Object) -> Container | None:
        while True:
            try:
                with self._lock:
                    if self._deletion.is_set():
                        return None
                    log = self._logs / f"{container['name']}.log"
                    started = self._runtime.start(self._pod, container, self._resolver, self._folder, log)
                    self._running.add(started)
                    return started
            except ContainerConfigError as error:
                waiting = {"reason": "CreateContainerConfigError", "message": str(error)}
                if self._statuses[container["name"]]["state"] != {"waiting": waiting}:
                    self._statuses[container["name"]]["state"] = {"waiting": waiting}
                    self._report("Pending")
                self._deletion.wait(_RETRY_SECONDS)

    def _report(self, phase: str) -> None:
        """Writes the pod's status, as of now."""
        with self._report_lock, _gone_pods():  # one at a time: an older status must not overwrite a newer one
            body = {"metadata": {"uid": self._pod["metadata"]["uid"]}, "status": self._build_pod_status(phase)}
            self._api.patch(f"{self._path}/status", body, STRATEGIC_PATCH)

    def _build_pod_status(self, phase: str) -> Object:
        inits = [self._statuses[each["name"]] for each in self._pod["spec"].get("initContainers", ())]
        statuses = [self._statuses[each["name"]] for each in self._pod["spec"]["containers"]]
        ended = phase in ("Succeeded", "Failed")
        not_ready = "PodCompleted" if phase == "Succeeded" else "PodFailed" if ended else "ContainersNotReady"
        ready = not ended and all(status["ready"] for status in statuses)
        initialized = all(status["state"].get("terminated", {}).get("exitCode") == 0 for status in inits)
        status: Object = {
            "phase": phase,
            "hostIP": "127.0.0.1",
            "startTime": self._started_at,
            "containerStatuses": statuses,
            "conditions": [
                _build_condition("PodReadyToStartContainers", not ended, ""),
                _build_condition("Initialized", initialized, "ContainersNotInitialized"),
                _build_condition("ContainersReady", ready, not_ready),
                _build_condition("Ready", ready, not_ready),
            ],
        }
        if inits:
            status["initContainerStatuses"] = inits
        if phase != "Pending":
            status |= {"podIP": self._pod_ip, "podIPs": [{"ip": self._pod_ip}]}
        return status

    def _remove(self) -> None:
        """The kubelet's last word on a deleted pod: the object may go (its finalizers permitting)."""
        with contextlib.suppress(_PodIsGone), _gone_pods():
            self._api.delete(
                self._path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self._pod["metadata"]["uid"]}}
            )


class _PodIsGone(Exception):
    """The pod was deleted by force; nobody waits for its status."""


@contextlib.contextmanager
def _gone_pods() -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        if error.status in (404, 409):  # 409: another pod has the name by now
            raise _PodIsGone from error
        raise


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _build_status(container: Object, state: Object) -> Object:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 0,
        "state": state,
    }


def _build_condition(kind: str, is_true: bool, reason: str) -> Object:
    return {"type": kind, "status": str(is_true), "reason": "" if is_true else reason, "lastTransitionTime": now()}
