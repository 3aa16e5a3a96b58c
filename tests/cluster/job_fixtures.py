"""Fixtures of tests that follow FineTuneJobs on the real API server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.operator_process import Jobs, OperatorProcess, install


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    """The operator's, with the CRD and its rights in place."""
    return install(control_plane)


@pytest.fixture
def jobs(kubeconfig: Path, control_plane: ControlPlane, namespace: str) -> Jobs:
    """FineTuneJobs of a fresh namespace."""
    return Jobs(control_plane, namespace)


@pytest.fixture
def operator(kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """One replica that watches the namespace."""
    with OperatorProcess(kubeconfig, namespace, tmp_path) as process:
        yield process
