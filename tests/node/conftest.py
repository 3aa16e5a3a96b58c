"""Fixtures of the tests on a real node. Where it can't be had they are skipped with the reason, but fail when CI=true."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.chart.release import RESTRICTED, Release
from tests.cluster.harness.binaries import MissingProgramError
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.fixtures import give_up
from tests.cluster.operator_process import SYSTEM
from tests.node.harness.node import Node, NodeInUseError
from tests.node.harness.pods import Pods

_report: list[str] = []


@pytest.fixture(scope="package")
def node() -> Iterator[Node]:
    """One node for all tests here; it ends before those of other folders begin."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(Node())
        except (MissingProgramError, NodeInUseError) as error:
            give_up(str(error))
        _report.extend(started.describe())
        yield started


@pytest.fixture(scope="session")
def report() -> list[str]:
    """Lines for the end of pytest's output."""
    return _report


@pytest.fixture(scope="package")
def control_plane(node: Node) -> ControlPlane:
    """The node's, in place of the one that only has test kubelets."""
    return node.control_plane


@pytest.fixture
def pods(node: Node, namespace: str) -> Pods:
    """Pods in a fresh namespace."""
    return Pods(node.control_plane, namespace)


@pytest.fixture(scope="module")
def restricted_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A team's namespace that enforces Pod Security 'restricted', one a module."""
    metadata = {"generateName": "team-", "labels": RESTRICTED}
    name = control_plane.api.post("/api/v1/namespaces", {"metadata": metadata})["metadata"]["name"]
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="module")
def release(control_plane: ControlPlane) -> Iterator[Release]:
    """Where the operator is to be installed: a namespace that enforces 'restricted'. One a module."""
    path = f"/api/v1/namespaces/{SYSTEM}"
    control_plane.api.post("/api/v1/namespaces", {"metadata": {"name": SYSTEM, "labels": RESTRICTED}})
    release = Release(control_plane, SYSTEM)
    yield release
    release.run("uninstall", "--ignore-not-found")
    control_plane.api.delete(path)
    control_plane.kubectl("wait", "--for=delete", f"namespace/{SYSTEM}", "--timeout=60s")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the node and its images cost."""
    if _report:
        terminalreporter.section("the node")
        for line in _report:
            terminalreporter.line(line)
