"""Leader election among real processes at the real API server: takeover in time, one writer at any moment."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from tests.cluster.harness.audit import Request, service_account_user
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.cluster.runtime import ACCOUNT, create_account, install_crd

ROOT = Path(__file__).parents[2]
TAKEOVER_SECONDS = 15

# Writes as often as it may, with its own name as user agent.
WRITER = """
    import sys, time
    from pathlib import Path
    from finetune_operator.cluster.client import Cluster
    from finetune_operator.cluster.errors import ApiError, NotLeader
    from finetune_operator.cluster.lease import ClusterLease, LeaderElector
    from tests.cluster.runtime import connect

    kubeconfig, namespace, name = sys.argv[1:]
    transport = connect(Path(kubeconfig), user_agent=name)
    elector = LeaderElector(ClusterLease(transport, namespace, "writers"), name, lambda: None)
    cluster = Cluster(transport, elector.seconds_to_write)
    elector.start()
    count = 0
    while True:
        count += 1
        body = {"metadata": {"namespace": namespace, "name": "last-writer"}, "data": {name: str(count)}}
        try:
            cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", **body})
        except (NotLeader, ApiError):
            pass
        time.sleep(0.02)
"""

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, namespace: str) -> Path:
    install_crd(control_plane)
    return create_account(control_plane, namespace)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts processes that do not outlive the test."""
    with contextlib.ExitStack() as stack:

        def start(*command: str, **env: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen([sys.executable, *command], env={**os.environ, **env}, cwd=ROOT)
            stack.callback(process.wait)
            stack.callback(process.kill)
            stack.callback(process.send_signal, signal.SIGCONT)
            return process

        yield start


def runs_of(requests: list[Request]) -> list[str]:
    """Who wrote, in order, each run of the same writer once."""
    writers: list[str] = []
    for request in sorted(requests, key=lambda request: request.time):
        if writers[-1:] != [request.user_agent]:
            writers.append(request.user_agent)
    return writers


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_holder_is_replaced_in_time_and_writers_never_mix(
    control_plane: ControlPlane, namespace: str, kubeconfig: Path, spawn: Spawn, end: signal.Signals
) -> None:
    """SIGSTOP, then SIGCONT: the old holder wakes up convinced of its Lease, and must not write."""
    audit = control_plane.audit
    mark = audit.mark()

    def writes() -> list[Request]:
        return audit.writes(mark, resource="configmaps", namespace=namespace, name="last-writer")

    def start(name: str) -> subprocess.Popen[bytes]:
        return spawn("-c", textwrap.dedent(WRITER), str(kubeconfig), namespace, name)

    first = start("first")
    wait_until(lambda: runs_of(writes()) == ["first"], "writes of the first")
    start("second")
    time.sleep(3)
    assert runs_of(writes()) == ["first"]
    first.send_signal(end)
    began = time.monotonic()
    wait_until(lambda: runs_of(writes())[-1] == "second", "a takeover", 2 * TAKEOVER_SECONDS)
    took = time.monotonic() - began
    print(f"takeover after {end.name}: {took:.1f} s")
    assert took < TAKEOVER_SECONDS
    first.send_signal(signal.SIGCONT)
    time.sleep(3)
    assert runs_of(writes()) == ["first", "second"]


@pytest.fixture
def replica(namespace: str, kubeconfig: Path, spawn: Spawn, tmp_path: Path) -> Callable[[int], subprocess.Popen[bytes]]:
    """Starts the operator's own program with its health at the given port."""

    def start(port: int) -> subprocess.Popen[bytes]:
        settings = {"namespaces": [namespace], "leaseNamespace": namespace, "healthPort": port, "logFormat": "text"}
        config = tmp_path / f"{port}.yaml"
        config.write_text(yaml.safe_dump(settings))
        return spawn("-m", "finetune_operator.main", "--config", str(config), KUBECONFIG=str(kubeconfig))

    return start


def get(port: int, path: str) -> str:
    """The body; nothing while the process is not there or says no."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


def test_replicas_at_rest_send_nothing_but_the_lease_and_hand_over_on_sigterm(
    control_plane: ControlPlane,
    namespace: str,
    replica: Callable[[int], subprocess.Popen[bytes]],
    free_ports: list[int],
) -> None:
    audit, user = control_plane.audit, service_account_user(namespace, ACCOUNT)
    one, two = free_ports
    leader = replica(one)
    wait_until(lambda: "finetune_operator_leader 1.0" in get(one, "/metrics"), "a leader")
    replica(two)
    for port in (one, two):
        wait_until(lambda port=port: get(port, "/readyz") and get(port, "/healthz"), "a replica that is ready")
    time.sleep(2)
    mark = audit.mark()
    time.sleep(9)
    requests = audit.requests(mark, user=user)
    assert {request.resource for request in requests} == {"leases"}
    assert 4 <= len([request for request in requests if request.is_write]) <= 5
    assert "finetune_operator_leader 0.0" in get(two, "/metrics")

    leader.terminate()
    began = time.monotonic()
    assert leader.wait(20) == 0
    wait_until(lambda: "finetune_operator_leader 1.0" in get(two, "/metrics"), "the other one leading", 5)
    print(f"handover after SIGTERM: {time.monotonic() - began:.1f} s")


@pytest.fixture
def free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(2)]
        return [each.getsockname()[1] for each in sockets]
