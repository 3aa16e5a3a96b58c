"""Two ranks of DDP on the CPU, started by the trainer's own launcher: on one node, and one on each of two."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from tests.ports import free_port
from tests.trainer.conftest import Start, adapter_bytes, clear
from tests.trainer.ranks import begin_launcher, run_ranks
from tests.trainer.running import losses, run

TWO_RANKS = {"strategy": "ddp", "processes_per_node": 2}


def _termination(folder: Path) -> dict[str, object]:
    return json.loads((folder / "termination").read_text())


def test_two_nodes_equal_one_at_double_batch_and_resume_after_sigterm(
    make: Callable[..., TrainingPlan], start: Start, tmp_path: Path
) -> None:
    """Gradients are averaged over the tokens of both ranks; SIGTERM to one node's launcher ends both in 75, behind a
    whole checkpoint, from which the same ranks on one node go on."""
    from safetensors.torch import load

    # Dropout draws on each rank for itself, so only without it can one rank do the same.
    lora = {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}}
    # Many steps, so that the signal finds some left on a busy machine.
    one = make(root="one", method=lora, training={"epochs": 9.0})
    run(one)
    parallelism = {"strategy": "ddp", "nodes": 2, "processes_per_node": 1}
    two = make(root="two", method=lora, parallelism=parallelism, training={"per_device_batch_size": 1, "epochs": 9.0})

    # As Kubeflow starts a PyTorchJob's pods.
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    nodes = [begin_launcher(two, tmp_path / f"node-{number}", **shared, RANK=str(number)) for number in range(2)]
    log = tmp_path / "node-0" / "stderr"
    deadline = time.monotonic() + 240
    while '"step": 3' not in log.read_text() and time.monotonic() < deadline:
        assert nodes[0].poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)
    nodes[1].send_signal(signal.SIGTERM)
    assert [node.wait(120) for node in nodes] == [ExitCode.PREEMPTED, ExitCode.PREEMPTED], log.read_text()[-3000:]
    for number in range(2):
        termination = _termination(tmp_path / f"node-{number}")
        assert termination["reason"] == "Preempted"
        assert str(termination["message"]).startswith("told to stop; a complete checkpoint of step ")
    assert all(line.startswith("{") for line in log.read_text().splitlines())

    ranks = run_ranks(start, two)
    assert ranks[0].events("resumed")
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    mine, theirs = load(adapter_bytes(one)), load(adapter_bytes(two))
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-3


def test_the_failing_ranks_exit_code_and_message_come_through(
    make: Callable[..., TrainingPlan], tmp_path: Path
) -> None:
    plan = make(parallelism=TWO_RANKS, dataset={"format": "alpaca"})
    clear(plan)
    assert begin_launcher(plan, tmp_path).wait(240) == ExitCode.INVALID
    termination = _termination(tmp_path)
    assert termination["reason"] == "InvalidPlanOrData"
    assert "alpaca needs instruction, output" in str(termination["message"])


def test_world_size_is_held_against_the_plan(make: Callable[..., TrainingPlan]) -> None:
    """One process for a plan of two would train at half the batch without a word."""
    with pytest.raises(InvalidInputError, match=r"1 processes were started, the plan's world size is 2"):
        run(make(parallelism=TWO_RANKS))


def test_a_node_that_is_not_told_its_place_is_named_what_is_missing(
    make: Callable[..., TrainingPlan], tmp_path: Path
) -> None:
    plan = make(parallelism={"strategy": "ddp", "nodes": 2, "processes_per_node": 1})
    assert begin_launcher(plan, tmp_path, MASTER_ADDR="127.0.0.1").wait(240) == ExitCode.INVALID
    message = str(_termination(tmp_path)["message"])
    assert "parallelism.nodes is 2, and the environment lacks MASTER_PORT, PET_NODE_RANK or RANK" in message
