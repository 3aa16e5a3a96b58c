"""`kubectl finetune` as a person types it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.harness.binaries import ensure_binaries
from tests.cluster.harness.control_plane import ControlPlane


class Plugin:
    """Runs the real kubectl, which finds the plugin on PATH, in one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), str(ensure_binaries()), os.environ["PATH"]])
        self._env = os.environ | {"KUBECONFIG": str(control_plane.kubeconfig), "PATH": path, "COLUMNS": "160"}
        self._namespace = namespace

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = ["kubectl", "finetune", *arguments, "--namespace", self._namespace]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self._env, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str, status: int = 0) -> str:
        """What it prints, stdout then stderr; asserts the exit status."""
        with self.start(*arguments) as process:
            out, error = process.communicate(timeout=120)
        assert process.returncode == status, f"{process.returncode}: {out}{error}"
        print(f"$ kubectl finetune {' '.join(arguments)}\n{out}{error}")
        return out + error
