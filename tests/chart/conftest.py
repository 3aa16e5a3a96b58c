"""Fixtures of the chart's tests: a control plane of their own, since the chart brings the CustomResourceDefinition."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.programs import find_monitoring_crds, find_pod_group_crds
from tests.chart.schemas import write_schemas
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.definitions import install_definition
from tests.cluster.harness.fixtures import start_control_plane
from tests.node.harness.training_operator import find_pytorchjob_crd


@pytest.fixture(scope="package")
def control_plane() -> Iterator[ControlPlane]:
    """Ends before the tests of other folders begin."""
    with start_control_plane() as started:
        yield started


@pytest.fixture(scope="package")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the kinds of the Prometheus operator, of Kubeflow's training operator and of gangs."""
    for path in (*find_monitoring_crds(), find_pytorchjob_crd(), *find_pod_group_crds().values()):
        install_definition(control_plane, path)
    return control_plane


@pytest.fixture(scope="package")
def schemas(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with strict JSON schemas of every kind that the API server serves."""
    return write_schemas(cluster.api, tmp_path_factory.mktemp("schemas"))
