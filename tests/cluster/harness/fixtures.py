"""Pytest fixtures: a control plane for the session, a namespace and kubelets for each test.

Where they can't be had, tests are skipped with the reason, but fail when CI=true.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest

from tests.cluster.harness import sandbox
from tests.cluster.harness.binaries import MissingProgramError
from tests.cluster.harness.containers import ProcessRuntime, ScriptedRuntime
from tests.cluster.harness.control_plane import EXISTING_CLUSTER, ControlPlane
from tests.cluster.harness.kubelet import Kubelet
from tests.cluster.harness.waiting import wait_until

_NODE_OPTIONS = ("name", "capacity", "labels", "taints")


class KubeletFactory(Protocol):
    """kubelet(mode="process" | "scripted", **options): a started Kubelet, stopped after the test.

    Options: those of Kubelet (name, capacity, labels, taints), and those of ProcessRuntime (python, entrypoint, env,
    paths) or ScriptedRuntime (script).
    """

    def __call__(self, mode: str = "process", **options: Any) -> Kubelet: ...


@contextlib.contextmanager
def start_control_plane() -> Iterator[ControlPlane]:
    """A control plane, or what `give_up` does."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(ControlPlane())
        except MissingProgramError as error:
            give_up(str(error))
        yield started


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One control plane for all tests of the session."""
    with start_control_plane() as started:
        yield started


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """The name of a fresh namespace, deleted after the test (without waiting for it)."""
    api = control_plane.api
    metadata = api.post("/api/v1/namespaces", {"metadata": {"generateName": "test-"}})["metadata"]
    accounts = f"/api/v1/namespaces/{metadata['name']}/serviceaccounts"
    wait_until(lambda: api.items(accounts), "a default ServiceAccount, without which no pod can be made")
    yield metadata["name"]
    api.delete(f"/api/v1/namespaces/{metadata['name']}")


@pytest.fixture
def kubelet(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[KubeletFactory]:
    """Makes test kubelets; see KubeletFactory."""
    if control_plane.is_existing_cluster:
        pytest.skip(f"{EXISTING_CLUSTER} is set, and test kubelets have no place in a real cluster")
    with contextlib.ExitStack() as stack:

        def start(mode: str = "process", **options: Any) -> Kubelet:
            node = {key: options.pop(key) for key in _NODE_OPTIONS if key in options}
            if mode == "process":
                request.getfixturevalue("_sandbox")
            runtime = ProcessRuntime(**options) if mode == "process" else ScriptedRuntime(**options)
            return stack.enter_context(Kubelet(control_plane, runtime, **node))

        yield start


@pytest.fixture(scope="session")
def _sandbox(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Finds out whether processes of this user may have a mount namespace."""
    folder = tmp_path_factory.mktemp("sandbox")
    spec = {"argv": ["true"], "env": {"PATH": os.defpath}, "cwd": "/", "root": str(folder), "read_only_root": True}
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(spec | {"mounts": []}))
    command = [sys.executable, "-I", "-S", str(Path(sandbox.__file__)), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        give_up(f"containers need root or unprivileged user namespaces: {done.stderr.strip()}")


def give_up(reason: str) -> NoReturn:
    """Skips the test, but fails it when CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
