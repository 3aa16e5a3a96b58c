"""Nodes that leave and come back while the others train on."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import ElasticPlan, TrainingPlan
from finetune_trainer.checkpoint.resume import name_checkpoint
from finetune_trainer.report.termination import build_termination, format_termination
from tests.node.trainers import is_told_to_stop
from tests.ports import free_port
from tests.trainer.conftest import Start, clear, read_events
from tests.trainer.ranks import begin_launcher

STEPS = 40
ELASTIC = {
    "strategy": "ddp",
    "nodes": 2,
    "processes_per_node": 1,
    "elastic": {"min_nodes": 1, "max_restarts": 1},
}


def read_nodes(folder: Path, name: str) -> list[int]:
    """How many nodes there were at each event of this name."""
    return [event.get("nodes") for event in read_events(folder / "stderr") if event["event"] == name]


def wait_for(condition: Callable[[], bool], node: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        log = (folder / "stderr").read_text()[-3000:]
        assert time.monotonic() < deadline and node.poll() is None, log
        time.sleep(0.02)


def read_losses(plan: TrainingPlan) -> list[float]:
    state = Path(plan.checkpoint.directory) / name_checkpoint(STEPS) / "trainer_state.json"
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def test_from_two_nodes_to_one_and_back_by_the_same_rows(
    make: Callable[..., TrainingPlan], start: Start, tmp_path: Path
) -> None:
    training = {"per_device_batch_size": 1, "gradient_accumulation": 1, "max_steps": STEPS, "epochs": None}
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}
    method = {"type": "lora", "lora": lora}
    plan = make(method=method, parallelism=ELASTIC, training=training, checkpoint={"every_steps": STEPS})
    alone = plan.on_nodes(1)
    assert alone.training.gradient_accumulation == 2 and alone.training_hash() == plan.training_hash()
    parallelism = alone.parallelism.model_copy(update={"elastic": None, "strategy": "single"})
    undisturbed = start(alone.model_copy(update={"parallelism": parallelism}))
    assert undisturbed.wait() == 0, undisturbed.log.read_text()[-3000:]
    expected = read_losses(plan)
    clear(plan)

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    first, second = (begin_launcher(plan, folders[i], **place, JOB_COMPLETION_INDEX=str(i)) for i in range(2))

    def count_steps(nodes: int) -> int:
        """Done by so many nodes."""
        return read_nodes(folders[0], "progress").count(nodes)

    wait_for(lambda: count_steps(nodes=2) >= 5, first, folders[0])
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == ExitCode.PREEMPTED, (folders[1] / "stderr").read_text()[-3000:]
    wait_for(lambda: count_steps(nodes=1) >= 3, first, folders[0])
    (rank,) = psutil.Process(first.pid).children()
    # It stands still until the other one is there, or it might be done before.
    rank.suspend()
    second = begin_launcher(plan, folders[2], **place, JOB_COMPLETION_INDEX="1")
    wait_for(lambda: is_told_to_stop(rank), first, folders[0])
    rank.resume()
    assert [node.wait(240) for node in (first, second)] == [0, 0], (folders[0] / "stderr").read_text()[-3000:]

    assert read_nodes(folders[0], "nodes") == [2, 1, 2]
    assert all('"reason":"Succeeded"' in (folder / "termination").read_text() for folder in (folders[0], folders[2]))
    result = json.loads((Path(plan.output.directory) / "result.json").read_text())
    assert (result["steps"], result["resumes"], result["lostSteps"]) == (STEPS, 2, 0)
    # Other processes add the same rows' gradients in another order.
    assert read_losses(plan) == pytest.approx(expected, abs=1e-4)


class Standing:
    """A rendezvous in which nothing happens."""

    def next_rendezvous(self) -> str:
        return "round"

    def shutdown(self) -> bool:
        self.closed = True
        return True


class Heard:
    """A heartbeat that hears what it is told."""

    def __init__(self) -> None:
        self.lost = threading.Event()

    def begin_round(self) -> None:
        self.lost.clear()


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([["PeerLost"], ["Preempted"], ["PeerLost"]], None),
        # Its ranks were killed because another node went silent.
        ([["lost"], ["lost"]], None),
        ([["TrainerError"], ["Preempted"]], None),
        ([["TrainerError"], ["TrainerError"]], ExitCode.ERROR),
        ([[], []], ExitCode.ERROR),
        ([["PeerLost"], ["InvalidPlanOrData"]], ExitCode.INVALID),
        ([["OutOfMemory"]], ExitCode.OUT_OF_MEMORY),
    ],
)
def test_how_a_round_ended_decides_whether_another_follows(
    ends: list[list[str]], code: ExitCode | None, tmp_path: Path
) -> None:
    from finetune_api.exit_codes import TABLE
    from finetune_trainer.elastic import ElasticRendezvous, RoundsEnded

    inner, heartbeat = Standing(), Heard()
    elastic = ElasticPlan(min_nodes=1, max_restarts=1)
    rendezvous = ElasticRendezvous(inner, elastic, 1, tmp_path, threading.Event(), heartbeat)
    codes = {meaning.reason: each for each, meaning in TABLE.items()}
    ended = None
    for round_ in ends:
        assert rendezvous.next_rendezvous() == "round"
        for rank, reason in enumerate(round_):
            if reason == "lost":
                heartbeat.lost.set()
                continue
            words = build_termination(codes[reason], f"it was {reason}")
            (tmp_path / str(rank)).write_text(format_termination(words))
    try:
        rendezvous.next_rendezvous()
    except RoundsEnded as end:
        ended = end.code
    assert ended == code
    rendezvous.shutdown()
    # Where nobody can go on, nobody waits.
    assert hasattr(inner, "closed") == (code not in (ExitCode.ERROR,))
