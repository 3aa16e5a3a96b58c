"""FineTuneJobs that train on the node, and their pods."""

from pathlib import Path
from typing import Any

import yaml

from finetune_api import names
from tests.cluster.harness.api import Object
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.images import REPOSITORY

QUICKSTART = REPOSITORY / "manifests" / "examples" / "quickstart.yaml"


class Training:
    """One FineTuneJob in one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str, name: str) -> None:
        self._control_plane, self.namespace, self.name = control_plane, namespace, name

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self._control_plane.kubectl(*arguments, namespace=self.namespace, stdin=stdin)

    def apply_quickstart(self, **training: Any) -> None:
        """The quickstart with this name and other values in spec.training, without the questions."""
        job, data = yaml.safe_load_all(QUICKSTART.read_text())
        job["metadata"]["name"] = self.name
        job["spec"] |= {"training": job["spec"]["training"] | training}
        del job["spec"]["evaluation"]
        self.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all([job, data]))

    def get(self) -> Object:
        path = f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/{names.PLURAL}/{self.name}"
        return self._control_plane.api.get(path)

    def pods(self) -> list[Object]:
        selector = f"{names.LABEL_JOB_NAME}={self.name}"
        return self._control_plane.api.items(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=selector)

    def pod(self) -> Object:
        """The one pod it has."""
        (pod,) = self.pods()
        return pod

    def wait_for_step(self, step: int, seconds: float = 600) -> None:
        def reached() -> bool:
            return self.get().get("status", {}).get("progress", {}).get("step", 0) >= step

        wait_until(reached, f"step {step} of {self.name}", seconds, describe=lambda: self.get().get("status"))

    def wait_for(self, condition: str, minutes: int = 20) -> None:
        self.kubectl("wait", f"--for=condition={condition}", f"finetunejob/{self.name}", f"--timeout={minutes}m")

    def output(self) -> Path:
        """The folder of this machine behind its output claim."""
        return self._control_plane.claim_folder(self.namespace, f"{self.name}-output")
