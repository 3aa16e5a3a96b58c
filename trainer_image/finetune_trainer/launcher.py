"""Starts one trainer process per GPU by torchrun's API, and ends with the exit code of the rank that failed first."""

import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from finetune_api.exit_codes import TABLE, ExitCode
from finetune_api.plan import ParallelismPlan
from finetune_api.progress import Termination
from finetune_trainer.errors import PreemptedError
from finetune_trainer.report.termination import RANK_DIRECTORY_ENV, build_termination, write_termination

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_AFTER_FAILURE = 15
"""Seconds that the other ranks have to end after one failed; they may hang in a collective that it left."""


def is_rank() -> bool:
    """Whether somebody (this launcher, torchrun, Kubeflow) started this process as one of the ranks."""
    return "RANK" in os.environ or "LOCAL_RANK" in os.environ


def launch(plan_file: Path, parallelism: ParallelismPlan) -> int:
    """Run the ranks of this node to their end; the exit code."""
    stopping = _forward_signals()
    # The ranks say why they end; the agent would repeat it, and not as JSON.
    logging.disable()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    processes = parallelism.processes_per_node
    if parallelism.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with tempfile.TemporaryDirectory(prefix="finetune-ranks-") as directory:
        os.environ[RANK_DIRECTORY_ENV] = directory
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="finetune",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            # The agent would answer SIGTERM by killing ranks that are still writing their checkpoint.
            signals_to_handle="SIGHUP",
            shutdown_timeout=_AFTER_FAILURE,
        )
        failures: dict[int, ProcessFailure] = {}
        try:
            if stopping.is_set():
                raise PreemptedError("told to stop before the ranks were started; nothing is lost")
            elastic_launch(config, sys.executable)("-m", "finetune_trainer", "--plan", str(plan_file))
        except ChildFailedError as error:
            failures = error.failures
        except PreemptedError as error:
            write_termination(build_termination(error.code, str(error)))
            return error.code
        code, rank = _find_cause(failures, stopping.is_set())
        os.environ.pop(RANK_DIRECTORY_ENV)
        write_termination(_read_termination(Path(directory), rank, code))
    return code


def _forward_signals() -> threading.Event:
    """Pass SIGTERM and SIGINT on to the ranks; the event tells whether one came."""
    stopping = threading.Event()

    def forward(number: int, frame: FrameType | None) -> None:
        stopping.set()
        for child in psutil.Process().children():
            child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    return stopping


def _find_cause(failures: "dict[int, ProcessFailure]", stopping: bool) -> tuple[int, int]:
    """Exit code and rank of what ended the run.

    A rank that fails tears the others down with a connection error, often within one look of the agent; a code that
    the trainer chose tells the cause better than which of them was seen first.
    """
    if not failures:
        return ExitCode.OK, 0
    chosen = {rank: failure for rank, failure in failures.items() if failure.exitcode in set(TABLE) - {ExitCode.ERROR}}
    rank, failure = min((chosen or failures).items(), key=lambda item: (item[1].timestamp, item[0]))
    if stopping and failure.exitcode == -signal.SIGTERM:
        # It was told to stop before it could listen, so it hadn't begun.
        return ExitCode.PREEMPTED, rank
    return (128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode), rank


def _read_termination(directory: Path, rank: int, code: int) -> Termination:
    path = directory / str(rank)
    if path.exists():
        return Termination.model_validate_json(path.read_bytes())
    if code == ExitCode.PREEMPTED:
        return build_termination(ExitCode.PREEMPTED, "told to stop before the first step; nothing is lost")
    ended = f"signal {code - 128}" if code > 128 else f"exit code {code}"
    return build_termination(ExitCode.ERROR, f"rank {rank} ended by {ended} without a word")
