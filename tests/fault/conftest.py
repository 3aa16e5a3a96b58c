"""Fixtures of the fault tests: FineTuneJobs on the real API server."""

from pathlib import Path

import pytest

from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.operator_process import Jobs, install


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    return install(control_plane)


@pytest.fixture
def jobs(kubeconfig: Path, control_plane: ControlPlane, namespace: str) -> Jobs:
    return Jobs(control_plane, namespace)
