"""Two nodes on one machine: a launcher each, as two pods have."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import is_peer_lost
from finetune_trainer.heartbeat import INTERVAL, LOST_AFTER, Peers
from tests.ports import free_port
from tests.trainer.conftest import adapter_bytes, clear
from tests.trainer.ranks import begin_launcher

TWO_NODES = {"strategy": "ddp", "nodes": 2, "processes_per_node": 1}


def begin(plan: TrainingPlan, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Both launchers, as the pods of an indexed Job start them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [begin_launcher(plan, folder / str(i), **shared, JOB_COMPLETION_INDEX=str(i)) for i in range(2)]


def wait_for_step(folder: Path, step: int, nodes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 240
    while f'"step": {step},' not in (log := (folder / "0/stderr").read_text()):
        assert time.monotonic() < deadline and nodes[0].poll() is None, log[-3000:]
        time.sleep(0.02)


def list_processes(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """All of its processes at once; their connections are closed."""
    for process in list_processes(node):
        process.kill()


def test_a_node_that_loses_the_other_is_free_to_come_back(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    """The one that is left ends soon, and not as if it had failed; both together go on to the same weights."""
    sections = {"parallelism": TWO_NODES, "training": {"per_device_batch_size": 1, "epochs": 20.0}}
    plan = make(**sections, checkpoint={"every_steps": 5})
    nodes = begin(plan, tmp_path / "whole")
    assert [node.wait(300) for node in nodes] == [0, 0], (tmp_path / "whole" / "0/stderr").read_text()[-3000:]
    expected = adapter_bytes(plan)
    clear(plan)

    for lost, step in enumerate((17, 37)):
        folder = tmp_path / f"lost-{lost}"
        nodes = begin(plan, folder)
        wait_for_step(folder, step, nodes)
        kill_node(nodes[lost])
        assert nodes[1 - lost].wait(60) == ExitCode.PEER_LOST
        assert nodes[lost].wait(60) == -signal.SIGKILL
        assert '"reason":"PeerLost"' in (folder / f"{1 - lost}/termination").read_text()
    again = tmp_path / "again"
    nodes = begin(plan, again)
    assert [node.wait(300) for node in nodes] == [0, 0], (again / "0/stderr").read_text()[-3000:]
    assert '"event": "resumed"' in (again / "0/stderr").read_text()
    assert adapter_bytes(plan) == expected


@pytest.mark.parametrize("silent", [0, 1])
def test_a_node_that_goes_silent_is_not_waited_for(
    make: Callable[..., TrainingPlan], tmp_path: Path, silent: int
) -> None:
    """As when the power goes: its connections stay open, and the collective that waits for it would wait half an hour."""
    sections = {"parallelism": TWO_NODES, "training": {"per_device_batch_size": 1, "epochs": 100.0}}
    nodes = begin(make(**sections), tmp_path)
    wait_for_step(tmp_path, 5, nodes)
    time.sleep(2 * INTERVAL)
    for process in list_processes(nodes[silent]):
        process.suspend()
    try:
        assert nodes[1 - silent].wait(2 * LOST_AFTER) == ExitCode.PEER_LOST
    finally:
        kill_node(nodes[silent])
    assert "went silent" in (tmp_path / f"{1 - silent}/termination").read_text()


def test_who_waits_for_the_first_node_listens_to_signals(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    node = begin_launcher(make(parallelism=TWO_NODES), tmp_path, **place, JOB_COMPLETION_INDEX="1")
    deadline = time.monotonic() + 120
    while psutil.Process(node.pid).num_threads() < 2:  # the heartbeat looks for it
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)
    node.send_signal(signal.SIGTERM)
    assert node.wait(20) == ExitCode.PREEMPTED
    assert "the first node was away" in (tmp_path / "termination").read_text()
    assert (tmp_path / "stderr").read_text() == ""


def test_what_is_heard_of_a_node_tells_whether_it_is_lost() -> None:
    peers = Peers()
    assert not peers.hear(1, "one 8", 0)
    # It may have been gone when the round began.
    assert not peers.hear(1, "one 8", 2 * LOST_AFTER)
    assert not peers.hear(1, "one 9", 100)
    assert not peers.hear(1, "one 9", 100 + LOST_AFTER)
    assert peers.hear(1, "one 9", 101 + LOST_AFTER)
    assert not peers.hear(1, "one 10", 102 + LOST_AFTER)
    # Another one in its place.
    assert peers.hear(1, "two 0", 103 + LOST_AFTER)


def test_who_leaves_is_not_missed() -> None:
    peers = Peers()
    beats = ["one 1", "one 2", "left", "left", "two 0", "two 1"]
    assert not any(peers.hear(1, beat, number * 1000) for number, beat in enumerate(beats))


def test_an_error_of_its_own_is_not_blamed_on_another_node() -> None:
    assert is_peer_lost(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711"))
    assert not is_peer_lost(RuntimeError("shape mismatch"))
    assert not is_peer_lost(ValueError("Connection closed by peer"))
