"""Pods in one namespace of a cluster, in the words of tests."""

from typing import Any

from tests.cluster.harness.api import Object
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.images import BASE, VERSION

# What Pod Security `restricted` asks for, and the read-only root on top.
RESTRICTED_POD = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


class Pods:
    """Creates pods of one container named main and follows them."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.api, self.namespace, self._control_plane = control_plane.api, namespace, control_plane
        self.core = f"/api/v1/namespaces/{namespace}"

    def create(self, name: str, image: str = BASE, pod: Object | None = None, **container: Any) -> None:
        """A pod with further fields of its spec and of its container."""
        main = {"name": "main", "image": f"{image}:{VERSION}", **container}
        spec = {"restartPolicy": "Never", "containers": [main]} | (pod or {})
        self.api.post(f"{self.core}/pods", {"metadata": {"name": name, "labels": {"app": name}}, "spec": spec})

    def run(
        self, name: str, image: str = BASE, pod: Object | None = None, silent: bool = False, **container: Any
    ) -> str:
        """Creates a pod, waits until it has succeeded and returns what it printed: something, if not `silent`."""
        self.create(name, image, pod, **container)
        phase = self.wait_for_phase(name, "Succeeded", "Failed")
        if phase != "Succeeded":
            raise AssertionError(f"pod {name} {phase}: {self.status(name)}\n{self.logs(name)}")
        # containerd may write the log a moment after it has told of the end.
        return self.logs(name) if silent else wait_until(lambda: self.logs(name), f"a log of pod {name}", 10)

    def run_restricted(self, name: str, image: str, silent: bool = False, **container: Any) -> str:
        """As `run`, as Pod Security `restricted` wants it, with a read-only root and no volume."""
        return self.run(
            name,
            image,
            {"securityContext": RESTRICTED_POD, "automountServiceAccountToken": False},
            silent,
            securityContext=RESTRICTED_CONTAINER,
            **container,
        )

    def status(self, name: str) -> Object:
        return dict(self.api.get(f"{self.core}/pods/{name}")["status"])

    def wait_for_phase(self, name: str, *phases: str, seconds: float = 120) -> str:
        def find() -> str | None:
            phase = self.status(name)["phase"]
            return phase if phase in phases else None

        return wait_until(find, f"pod {name} {' or '.join(phases)}", seconds, describe=lambda: self.status(name))

    def delete(self, name: str) -> Object:
        """Asks it to end and returns its last status once it is gone."""
        with self.api.watch(f"{self.core}/pods", fieldSelector=f"metadata.name={name}") as watch:
            events = iter(watch)
            _, pod = next(events)  # from the list; the watch starts after it
            self.api.delete(f"{self.core}/pods/{name}")
            while True:
                event, pod = next(events)
                if event == "DELETED":
                    return dict(pod["status"])

    def logs(self, name: str) -> str:
        return self._control_plane.kubectl("logs", name, namespace=self.namespace)
