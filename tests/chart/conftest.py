"""Fixtures of the chart's tests: a control plane of their own, since the chart brings the CustomResourceDefinition."""

from pathlib import Path

import pytest

from tests.chart.programs import find_monitoring_crds
from tests.chart.schemas import write_schemas
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.fixtures import control_plane, namespace

__all__ = ["control_plane", "namespace"]


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the Prometheus operator's kinds."""
    for path in find_monitoring_crds():
        control_plane.kubectl("apply", "--server-side", "--filename", str(path))
        control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "--filename", str(path))
    return control_plane


@pytest.fixture(scope="session")
def schemas(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with strict JSON schemas of every kind that the API server serves."""
    return write_schemas(cluster.api, tmp_path_factory.mktemp("schemas"))
