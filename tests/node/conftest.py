"""Fixtures of the tests on a real node. Where it can't be had they are skipped with the reason, but fail when CI=true."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.cluster.harness.binaries import MissingProgramError
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.fixtures import give_up, namespace
from tests.node.harness.node import Node, NodeInUseError
from tests.node.harness.pods import Pods

__all__ = ["control_plane", "namespace", "node", "pods"]

_report: list[str] = []


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """One node for all tests of the session."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(Node())
        except (MissingProgramError, NodeInUseError) as error:
            give_up(str(error))
        _report.extend(started.describe())
        yield started


@pytest.fixture(scope="session")
def control_plane(node: Node) -> ControlPlane:
    """The node's, in place of the one that only has test kubelets."""
    return node.control_plane


@pytest.fixture
def pods(node: Node, namespace: str) -> Pods:
    """Pods in a fresh namespace."""
    return Pods(node.control_plane, namespace)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the node and its images cost."""
    if _report:
        terminalreporter.section("the node")
        for line in _report:
            terminalreporter.line(line)
