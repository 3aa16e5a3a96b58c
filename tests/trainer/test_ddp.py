"""Two ranks of DDP on the CPU, started by the trainer's own launcher."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from tests.trainer.conftest import Start, adapter_bytes, clear
from tests.trainer.running import losses, run

TWO_RANKS = {"strategy": "ddp", "processes_per_node": 2}


def _begin(plan: TrainingPlan, folder: Path) -> "subprocess.Popen[bytes]":
    plan_file = folder / "plan.json"
    plan_file.write_text(plan.to_json())
    environment = {**os.environ, "FINETUNE_TERMINATION_LOG": str(folder / "termination")}
    with (folder / "stderr").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", "--plan", str(plan_file)], env=environment, stderr=log
        )


def _termination(folder: Path) -> dict[str, object]:
    return json.loads((folder / "termination").read_text())


def test_two_ranks_equal_one_at_double_batch_and_resume_after_sigterm(
    make: Callable[..., TrainingPlan], start: Start, tmp_path: Path
) -> None:
    """Gradients are averaged over the tokens of both ranks; SIGTERM to the launcher ends in 75 and a whole checkpoint."""
    from safetensors.torch import load

    # Dropout draws on each rank for itself, so only without it can one rank do the same.
    lora = {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}}
    one = make(root="one", method=lora)
    run(one)
    two = make(root="two", method=lora, parallelism=TWO_RANKS, training={"per_device_batch_size": 1})

    process = _begin(two, tmp_path)
    deadline = time.monotonic() + 240
    while '"step": 3' not in (tmp_path / "stderr").read_text() and time.monotonic() < deadline:
        assert process.poll() is None, (tmp_path / "stderr").read_text()[-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == ExitCode.PREEMPTED, (tmp_path / "stderr").read_text()[-3000:]
    termination = _termination(tmp_path)
    assert termination["reason"] == "Preempted"
    assert str(termination["message"]).startswith("told to stop; a complete checkpoint of step ")
    assert all(line.startswith("{") for line in (tmp_path / "stderr").read_text().splitlines())

    # As torchrun or Kubeflow would start them.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [start(two, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [ExitCode.OK, ExitCode.OK], ranks[0].log.read_text()[-3000:]
    assert ranks[0].events("resumed")
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    mine, theirs = load(adapter_bytes(one)), load(adapter_bytes(two))
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-3


def test_the_failing_ranks_exit_code_and_message_come_through(
    make: Callable[..., TrainingPlan], tmp_path: Path
) -> None:
    plan = make(parallelism=TWO_RANKS, dataset={"format": "alpaca"})
    clear(plan)
    assert _begin(plan, tmp_path).wait(240) == ExitCode.INVALID
    termination = _termination(tmp_path)
    assert termination["reason"] == "InvalidPlanOrData"
    assert "alpaca needs instruction, output" in str(termination["message"])


def test_world_size_is_held_against_the_plan(make: Callable[..., TrainingPlan]) -> None:
    """One process for a plan of two would train at half the batch without a word."""
    with pytest.raises(InvalidInputError, match=r"1 processes were started, the plan's world size is 2"):
        run(make(parallelism=TWO_RANKS))
