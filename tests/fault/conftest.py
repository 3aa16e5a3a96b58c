"""Fixtures of the fault tests: the real API server, and scripted pods."""

from pathlib import Path

import pytest

from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.fixtures import _sandbox, control_plane, kubelet, namespace
from tests.cluster.operator_process import Jobs, install

__all__ = ["_sandbox", "control_plane", "kubelet", "namespace"]


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    return install(control_plane)


@pytest.fixture
def jobs(kubeconfig: Path, control_plane: ControlPlane, namespace: str) -> Jobs:
    return Jobs(control_plane, namespace)
