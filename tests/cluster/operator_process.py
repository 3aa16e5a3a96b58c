"""The operator as users run it: a process of its own, as its ServiceAccount, with the rights of manifests/base."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from finetune_api import names
from tests.cluster.harness.api import Object
from tests.cluster.harness.audit import service_account_user
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.cluster.runtime import FINETUNEJOBS, install_crd

BASE = Path(__file__).parents[2] / "manifests" / "base"
SYSTEM = "finetune-system"
USER = service_account_user(SYSTEM, "finetune-operator")


def install(control_plane: ControlPlane) -> Path:
    """CRD, namespace and RBAC; the kubeconfig of the operator's ServiceAccount."""
    install_crd(control_plane)
    for file in ("namespace.yaml", "rbac.yaml"):  # in this order
        control_plane.kubectl("apply", "--server-side", "--filename", str(BASE / file), namespace=SYSTEM)
    return control_plane.service_account_kubeconfig(SYSTEM, "finetune-operator")


class OperatorProcess:
    """One replica on one namespace. Settings beyond these by keyword, in camelCase."""

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path, replica: str = "a", **settings: Any) -> None:
        content = {
            "namespaces": [namespace],
            "healthPort": 0,
            "leaseNamespace": SYSTEM,
            "leaseName": namespace,
            "logFormat": "text",
        }
        self._config = folder / f"settings-{replica}.yaml"
        self._config.write_text(yaml.safe_dump(content | settings))
        self.log = folder / f"operator-{replica}.log"
        self._env = os.environ | {"KUBECONFIG": str(kubeconfig)}

    def start(self) -> Self:
        command = [sys.executable, "-m", "finetune_operator.main", "--config", str(self._config)]
        with self.log.open("a") as log:
            self._start = log.tell()
            self.process = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)
        return self

    def kill(self) -> None:
        """As a node that loses power would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As the kubelet asks; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def read_health(self, path: str) -> str:
        """Body of a page of the health server, once it answers."""

        def ask() -> str | None:
            text = self.log.read_text()[self._start :]
            if "health at port " not in text:
                return None
            port = text.split("health at port ")[1].split()[0]
            try:
                return urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read().decode()
            except URLError:
                return None

        return wait_until(ask, f"{path} of the operator", describe=lambda: self.log.read_text()[-2000:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        if error is not None:
            error.add_note(f"operator's log:\n{self.log.read_text()[-6000:]}")


def build_finetunejob(name: str, **spec: Any) -> Object:
    body = {
        "model": {"source": "pvc://models/base"},
        "dataset": {"source": "pvc://data/train.jsonl"},
        "resources": {"gpu": {"count": 0}},
    }
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": body | spec}


class Jobs:
    """FineTuneJobs and their children in one namespace, seen by the admin."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.api, self.namespace, self._control_plane = control_plane.api, namespace, control_plane
        for claim in ("models", "data"):
            spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            self.api.post(
                f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", {"metadata": {"name": claim}, "spec": spec}
            )

    def create(self, name: str, **spec: Any) -> Object:
        return self.api.post(
            f"{FINETUNEJOBS}/namespaces/{self.namespace}/{names.PLURAL}", build_finetunejob(name, **spec)
        )

    def get(self, name: str) -> Object:
        return self.api.get(f"{FINETUNEJOBS}/namespaces/{self.namespace}/{names.PLURAL}/{name}")

    def all(self) -> list[Object]:
        return self.api.items(f"{FINETUNEJOBS}/namespaces/{self.namespace}/{names.PLURAL}")

    def patch_spec(self, name: str, **spec: Any) -> Object:
        return self.api.patch(f"{FINETUNEJOBS}/namespaces/{self.namespace}/{names.PLURAL}/{name}", {"spec": spec})

    def children(self, plural: str, api: str = "/api/v1") -> list[Object]:
        return self.api.items(f"{api}/namespaces/{self.namespace}/{plural}", labelSelector=names.LABEL_JOB_NAME)

    def workloads(self) -> list[Object]:
        return self.children("jobs", "/apis/batch/v1")

    def delete_workload(self, name: str) -> None:
        self.api.delete(f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}", {"propagationPolicy": "Background"})

    def wait_for(self, name: str, seconds: float = 60, **expected: Any) -> Object:
        """Waits until the status has these values, dotted keys as ``workload__uid``."""

        def probe() -> Object | None:
            status = self.get(name).get("status") or {}
            for path, value in expected.items():
                actual: Any = status
                for key in path.split("__"):
                    actual = (actual or {}).get(key)
                if actual != value:
                    return None
            return status

        return wait_until(probe, f"{name} with {expected}", seconds, describe=lambda: str(self.get(name).get("status")))
