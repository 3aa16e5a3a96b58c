"""Checkpoints in S3, on a real server process: killed, resumed on a machine that has nothing, broken, and away for a while."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint import reached
from finetune_trainer.checkpoint.reached import ReachedCallback, count_lost_steps
from finetune_trainer.s3 import connect_s3
from tests.checkpoints import list_complete
from tests.soak import SOAK, record
from tests.trainer.conftest import Start, adapter_bytes, begin, forget_machine
from tests.trainer.s3_server import BUCKET, S3Server

AWAY_SECONDS = 30 if SOAK else 8
STEPS = 9


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    server = S3Server(tmp_path / "s3")
    yield server
    server.stop()


@pytest.fixture
def make_remote(make: Callable[..., TrainingPlan], tmp_path: Path) -> Callable[..., TrainingPlan]:
    """``make_remote(**checkpoint)``: the small plan with its checkpoints in the bucket."""

    def build(**checkpoint: Any) -> TrainingPlan:
        place = {"directory": f"s3://{BUCKET}/runs/run-1", "staging": str(tmp_path / "staging"), "every_steps": 2}
        return make(checkpoint=place | checkpoint)

    return build


def expect(make: Callable[..., TrainingPlan], start: Start) -> bytes:
    """The weights of a run that nobody disturbs, its checkpoints in a folder."""
    plan = make(root="whole")
    assert start(plan).wait() == ExitCode.OK
    return adapter_bytes(plan)


def kept(server: S3Server) -> list[int]:
    return list_complete(server.folder / "runs" / "run-1")


def spoil(runs: Path, server: S3Server) -> None:
    """Checkpoints 3 to 6, each in another way."""
    os.environ.update(server.environment)
    remote = connect_s3()

    def write(path: Path, content: bytes) -> None:
        with remote.open_output_stream(str(path.relative_to(server.folder.parent))) as file:
            file.write(content)

    weights = runs / "checkpoint-6" / "adapter_model.safetensors"
    write(weights, weights.read_bytes()[:-100])
    optimizer = runs / "checkpoint-5" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    write(optimizer, bytes(content))
    (runs / "checkpoint-4" / "finetune-checkpoint.json").unlink(missing_ok=True)
    foreign = runs / "checkpoint-3" / "finetune-checkpoint.json"
    write(foreign, json.dumps(json.loads(foreign.read_text()) | {"runId": "another"}).encode())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_killed_run_goes_on_where_nothing_of_it_is(
    make: Callable[..., TrainingPlan],
    make_remote: Callable[..., TrainingPlan],
    start: Start,
    server: S3Server,
    asynchronous: bool,
) -> None:
    expected = expect(make, start)
    plan = make_remote(asynchronous=asynchronous)
    assert begin(start, plan, server, kill_after_step=7).wait() == -signal.SIGKILL
    saved = kept(server)
    assert saved in ([2, 4], [4, 6])  # the newest may still be on its way
    forget_machine(plan)
    trainer = begin(start, plan, server)
    assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
    assert trainer.events("resumed")[0]["step"] == saved[-1]
    assert adapter_bytes(plan) == expected
    assert kept(server) == [8, STEPS]
    assert not list(Path(plan.checkpoint.folder).glob("checkpoint-*/*"))  # nothing piles up on the node's disk


def test_a_server_that_is_away_during_a_save_loses_nothing(
    make: Callable[..., TrainingPlan], make_remote: Callable[..., TrainingPlan], start: Start, server: S3Server
) -> None:
    expected = expect(make, start)
    plan = make_remote()
    trainer = begin(start, plan, server)
    trainer.wait_for(lambda event: event["event"] == "checkpoint" and event["step"] == 2)
    server.stop()

    def come_back() -> None:
        time.sleep(AWAY_SECONDS)
        server.start()

    comes_back = threading.Thread(target=come_back)
    comes_back.start()
    assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
    comes_back.join()
    assert adapter_bytes(plan) == expected
    assert kept(server) == [8, STEPS]
    record("S3 away during a save", seconds=AWAY_SECONDS, lostCheckpoints=0, sameWeights=True)


def test_sigterm_during_the_training_saves_before_the_end(
    make: Callable[..., TrainingPlan], make_remote: Callable[..., TrainingPlan], start: Start, server: S3Server
) -> None:
    """In the background too: the process doesn't end before its last checkpoint is complete."""
    expected = expect(make, start)
    plan = make_remote(every_steps=None, asynchronous=True)
    trainer = begin(start, plan, server, sigterm_after_step=1)
    assert trainer.wait() == ExitCode.PREEMPTED
    assert kept(server)[-1] == trainer.termination["checkpointStep"] == trainer.termination["step"]
    forget_machine(plan)
    assert begin(start, plan, server).wait() == ExitCode.OK
    assert adapter_bytes(plan) == expected


def test_broken_and_foreign_checkpoints_are_passed_over_and_none_good_is_no_new_start(
    make: Callable[..., TrainingPlan], make_remote: Callable[..., TrainingPlan], start: Start, server: S3Server
) -> None:
    expected = expect(make, start)
    plan = make_remote(every_steps=1, keep=9)
    assert begin(start, plan, server, kill_after_step=7).wait() == -signal.SIGKILL
    runs = server.folder / "runs" / "run-1"
    spoil(runs, server)
    trainer = begin(start, plan, server)
    assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
    assert trainer.events("resumed")[0]["step"] == 2
    warnings = "\n".join(event["message"] for event in trainer.events("warning"))
    assert "checkpoint-6 has a changed file adapter_model.safetensors" in warnings
    assert "checkpoint-5 has a changed file optimizer.pt" in warnings
    assert "checkpoint-4 has no marker" in warnings
    assert "checkpoint-3 belongs to another run, another" in warnings
    assert adapter_bytes(plan) == expected

    # All that is left is broken: their work isn't thrown away by starting anew.
    forget_machine(plan)
    for step in (1, 2, 7, 8, 9):
        shutil.rmtree(runs / f"checkpoint-{step}", ignore_errors=True)
    spoil(runs, server)
    trainer = begin(start, plan, server)
    assert trainer.wait() == ExitCode.CHECKPOINT_UNUSABLE
    message = trainer.termination["message"]
    assert "checkpoint-6 has a changed file" in message and "checkpoint-5 has a changed file" in message
    assert "checkpoint.resume: never" in message
    assert (runs / "checkpoint-6").exists()


def test_steps_that_were_lost_are_counted_where_nothing_of_the_run_is(
    make_remote: Callable[..., TrainingPlan], server: S3Server, opened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_remote()
    file = server.folder / "runs" / "run-1" / "reached.json"

    def reach(callback: ReachedCallback, step: int) -> None:
        callback.on_log(None, TrainerState(global_step=step), None)
        if callback._writing is not None:
            callback._writing.join()

    assert count_lost_steps(plan, None) == 0
    first = ReachedCallback(plan, lost_steps=0)
    reach(first, 7)
    assert json.loads(file.read_text())["step"] == 7
    reach(first, 8)  # too soon for another request
    assert count_lost_steps(plan, None) == 7
    reach(ReachedCallback(plan, lost_steps=7), 3)
    assert count_lost_steps(plan, None) == 10

    server.stop()
    monkeypatch.setattr(reached, "_INTERVAL", 0.5)
    reach(ReachedCallback(plan, lost_steps=7), 9)  # no error
    server.start()
    assert count_lost_steps(plan, None) == 10
