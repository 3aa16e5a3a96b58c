"""Told to stop: whoever of the ranks is told, all stop at one step, saved, and none waits for another for ever.

FINETUNE_SOAK=1: fifty times instead of three.
"""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from tests.checkpoints import list_complete
from tests.soak import SOAK, record
from tests.trainer.conftest import Start, adapter_bytes, clear
from tests.trainer.ranks import begin_launcher, run_ranks, share_out, start_ranks

TIMES = 50 if SOAK else 3
LONG: dict[str, Any] = {
    "training": {"per_device_batch_size": 1, "epochs": 600.0 if SOAK else 30.0},
    "checkpoint": {"every_steps": 100 if SOAK else None},
}
"""More steps than are done between that many signals."""


def newest(plan: TrainingPlan) -> int:
    return max(list_complete(Path(plan.checkpoint.directory)), default=0)


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_one_rank_is_told_and_both_stop_at_the_same_step(
    make: Callable[..., TrainingPlan], start: Start, strategy: Any
) -> None:
    plan = make(parallelism=share_out(strategy), **LONG)
    run_ranks(start, plan)
    expected = adapter_bytes(plan)
    clear(plan)
    for _ in range(TIMES):
        ranks = start_ranks(start, plan)
        before = newest(plan)
        ranks[0].wait_for(lambda event, before=before: event["event"] == "progress" and event["step"] > before)
        time.sleep(random.uniform(0, 0.3))
        random.choice(ranks).send(signal.SIGTERM)
        codes = [rank.wait(60) for rank in ranks]
        assert codes == [ExitCode.PREEMPTED] * 2, "\n".join(rank.log.read_text()[-2000:] for rank in ranks)
        assert ranks[0].termination["step"] == ranks[1].termination["step"] == newest(plan)
    run_ranks(start, plan)
    assert adapter_bytes(plan) == expected
    record(f"SIGTERM to one rank of two, {strategy}", times=TIMES, stoppedAtOneStep=TIMES, sameWeights=True)


def test_data_loader_workers_live_until_the_save(
    make: Callable[..., TrainingPlan], start: Start, tmp_path: Path
) -> None:
    """A signal to every process of the pod, as some runtimes send it, kills no worker that the step still needs."""
    training = {"data_loader_workers": 2, "epochs": 10.0}
    plan = make(training=training | {"data_loader_workers": 0}, checkpoint={"every_steps": None})
    assert start(plan).wait() == ExitCode.OK
    expected = adapter_bytes(plan)
    clear(plan)
    # A process of its own: those of the fork server would start their workers by importing everything again.
    trainer = begin_launcher(make(training=training, checkpoint={"every_steps": None}), tmp_path / "workers")
    log = tmp_path / "workers" / "stderr"
    deadline = time.monotonic() + 200
    while '"step": 1,' not in log.read_text():
        assert trainer.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)
    tree = psutil.Process(trainer.pid)
    children = tree.children(recursive=True)
    assert len(children) >= 2
    for process in (*children, tree):
        process.send_signal(signal.SIGTERM)
    assert trainer.wait(60) == ExitCode.PREEMPTED, log.read_text()[-3000:]
    assert start(plan).wait() == ExitCode.OK
    assert adapter_bytes(plan) == expected
