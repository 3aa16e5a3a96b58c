"""Starts this node's trainer processes by torchrun's API, and ends with the exit code of the rank that failed first."""

import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]

from finetune_api.exit_codes import TABLE, ExitCode
from finetune_api.plan import ParallelismPlan
from finetune_api.progress import Termination
from finetune_trainer.errors import InvalidInputError, PreemptedError, TrainerError
from finetune_trainer.report.termination import RANK_DIRECTORY_ENV, build_termination, write_termination

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from finetune_trainer.heartbeat import Heartbeat

_AFTER_FAILURE = 15
"""Seconds that the other ranks have to end after one failed; they may hang in a collective that it left."""


_NODE_RANKS = ("PET_NODE_RANK", "RANK", "JOB_COMPLETION_INDEX")
"""Variables with this node's number: torchrun's own, Kubeflow's of a pod, and those of an indexed Job's pod."""


def is_rank() -> bool:
    """Whether somebody (this launcher or torchrun) started this process as one of the ranks. Kubeflow starts a pod's
    only process with a RANK, which is the pod's, and leaves the rest to a launcher."""
    return "LOCAL_RANK" in os.environ


def needs_launch(parallelism: ParallelismPlan) -> bool:
    """Whether this process has to start the ranks. Even a single one of DeepSpeed or FSDP wants their environment."""
    return parallelism.strategy != "single" and not is_rank()


def launch(plan_file: Path, parallelism: ParallelismPlan) -> int:
    """Run the ranks of this node to their end; the exit code."""
    stopping = _forward_signals()
    # The ranks say why they end; the agent would repeat it, and not as JSON.
    logging.disable()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from finetune_trainer.elastic import RoundsEnded

    processes = parallelism.processes_per_node
    if parallelism.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with tempfile.TemporaryDirectory(prefix="finetune-ranks-") as directory:
        os.environ[RANK_DIRECTORY_ENV] = directory
        failures: dict[int, ProcessFailure] = {}
        termination: Termination | None = None
        heartbeat: Heartbeat | None = None
        try:
            heartbeat = _begin_heartbeat(parallelism.nodes)
            if heartbeat is not None:
                heartbeat.meet(stopping)
            config = LaunchConfig(
                min_nodes=parallelism.elastic.min_nodes if parallelism.elastic else parallelism.nodes,
                max_nodes=parallelism.nodes,
                nproc_per_node=processes,
                run_id="finetune",
                **_build_rendezvous(parallelism, heartbeat, Path(directory), stopping),
                # The agent would answer SIGTERM by killing ranks that are still writing their checkpoint.
                signals_to_handle="SIGHUP",
                shutdown_timeout=_AFTER_FAILURE,
            )
            if stopping.is_set():
                raise PreemptedError("told to stop before the ranks were started; nothing is lost")
            elastic_launch(config, sys.executable)("-m", "finetune_trainer", "--plan", str(plan_file))
        except ChildFailedError as error:
            failures = error.failures
        except TrainerError as error:
            code, termination = int(error.code), build_termination(error.code, str(error))
        except RoundsEnded as end:
            code, termination = int(end.code), end.termination
        finally:
            if heartbeat is not None:
                heartbeat.leave()
        if termination is None and failures and heartbeat is not None and heartbeat.lost.is_set():
            code = ExitCode.PEER_LOST
            termination = build_termination(code, "another node went silent; this one waits for it to come back")
        elif termination is None:
            code, rank = _find_cause(failures, stopping.is_set())
            termination = _read_termination(Path(directory), rank, code)
        os.environ.pop(RANK_DIRECTORY_ENV)
        write_termination(termination)
    return code


def _begin_heartbeat(nodes: int) -> "Heartbeat | None":
    """To the first node, where the launchers meet, as the environment says; None for a node that is alone.

    Raises: InvalidInputError when the environment doesn't say it all.
    """
    if nodes == 1:
        return None
    numbers = [os.environ[name] for name in _NODE_RANKS if name in os.environ]
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if not numbers:
        missing.append(" or ".join(_NODE_RANKS))
    if missing:
        raise InvalidInputError(
            f"parallelism.nodes is {nodes}, and the environment lacks {', '.join(missing)}: start one process on each "
            "node with them, as Kubeflow's PyTorchJob does"
        )
    from finetune_trainer.heartbeat import Heartbeat

    return Heartbeat(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(numbers[0]), nodes)


def _build_rendezvous(
    parallelism: ParallelismPlan,
    heartbeat: "Heartbeat | None",
    last_words: Path,
    stopping: threading.Event,
) -> dict[str, Any]:
    """How the nodes' launchers meet, and how often."""
    if heartbeat is None:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost", "max_restarts": 0}
    elastic, endpoint = parallelism.elastic, f"{heartbeat.host}:{heartbeat.port}"
    if elastic is None:
        configuration: dict[str, Any] = {"rank": heartbeat.node}
        return {"rdzv_backend": "static", "rdzv_endpoint": endpoint, "rdzv_configs": configuration, "max_restarts": 0}
    from finetune_trainer.elastic import CONFIGURATION, register_rendezvous

    processes = parallelism.processes_per_node
    return {
        "rdzv_backend": register_rendezvous(elastic, processes, last_words, stopping, heartbeat),
        "rdzv_endpoint": endpoint,
        "rdzv_configs": CONFIGURATION | {"is_host": heartbeat.node == 0},
        # Ranks are numbered by their nodes' addresses, and rank 0 has to be on the first node, the one that is asked for
        # the progress. Of the others nobody needs the address.
        "local_addr": heartbeat.host if heartbeat.node == 0 else f"~{heartbeat.node:05}",
        # Which ends count is decided between the rounds.
        "max_restarts": sys.maxsize,
    }


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
    """Exit code and rank of what ended the run; the rank says nothing when all went well.

    A rank that fails tears the others down with a connection error, often within one look of the agent; a code that
    the trainer chose tells the cause better than which of them was seen first. That a rank lost another is never the
    cause where another one is to be had.
    """
    if not failures:
        return ExitCode.OK, 0
    own = {rank: failure for rank, failure in failures.items() if failure.exitcode != ExitCode.PEER_LOST}
    causes = own or failures
    chosen = {rank: failure for rank, failure in causes.items() if failure.exitcode in set(TABLE) - {ExitCode.ERROR}}
    rank, failure = min((chosen or causes).items(), key=lambda item: (item[1].timestamp, item[0]))
    if stopping and failure.exitcode == -signal.SIGTERM:
        # It was told to stop before it could listen, so it hadn't begun.
        return ExitCode.PREEMPTED, rank
    return (128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode), rank


def _read_termination(directory: Path, rank: int, code: int) -> Termination:
    path = directory / str(rank)
    if code == ExitCode.OK:  # the first rank of this node tells it
        path = min(directory.iterdir(), key=lambda file: int(file.name))
    if path.exists():
        return Termination.model_validate_json(path.read_bytes())
    if code == ExitCode.PREEMPTED:
        return build_termination(ExitCode.PREEMPTED, "told to stop before the first step; nothing is lost")
    ended = f"signal {code - 128}" if code > 128 else f"exit code {code}"
    return build_termination(ExitCode.ERROR, f"rank {rank} ended by {ended} without a word")
