"""Fixtures of all tests against a real API server."""

from tests.cluster.harness.fixtures import _sandbox, control_plane, kubelet, namespace

__all__ = ["_sandbox", "control_plane", "kubelet", "namespace"]
