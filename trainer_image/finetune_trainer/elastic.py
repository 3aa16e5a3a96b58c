"""Nodes that come and go: each round of the training has those that are there when it begins.

torchrun's own rendezvous (c10d) tells who is there. Between two rounds stands what its agent doesn't know: how the ranks
ended, and that those of a round that grows have to save before they stop.
"""

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped]
from torch.distributed.elastic.rendezvous import (
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from finetune_api.exit_codes import TABLE, ExitCode, Retry
from finetune_api.plan import ElasticPlan
from finetune_api.progress import Termination
from finetune_trainer.heartbeat import Heartbeat
from finetune_trainer.report.termination import build_termination

BACKEND = "finetune-elastic"
CONFIGURATION = {
    # Whoever is alone waits so long for more, once there are enough.
    "last_call_timeout": 15,
    # Until there are enough.
    "join_timeout": 24 * 3600,
    # The first node, where all meet, may be away: who waits for it in vain gives its GPUs back.
    "read_timeout": 120,
}
_CODES = {meaning.reason: code for code, meaning in TABLE.items()}


class RoundsEnded(Exception):
    """This node takes part in no further round; with the exit code and the last words."""

    def __init__(self, code: ExitCode, termination: Termination) -> None:
        super().__init__(termination.message)
        self.code = code
        self.termination = termination


class ElasticRendezvous(RendezvousHandler):  # type: ignore[misc]
    """A rendezvous whose rounds end as the exit-code table says, and grow without a lost step.

    ``last_words`` is the folder where the ranks of this node leave theirs.
    """

    def __init__(
        self,
        inner: RendezvousHandler,
        elastic: ElasticPlan,
        processes: int,
        last_words: Path,
        stopping: threading.Event,
        heartbeat: Heartbeat,
    ) -> None:
        self._inner = inner
        self._elastic = elastic
        self._processes = processes
        self._last_words = last_words
        self._stopping = stopping
        self._heartbeat = heartbeat
        self._rounds = 0
        self._restarts = 0
        self._is_growing = False
        self._code: ExitCode | None = None
        """What this node ends with; None as long as it doesn't."""

    @property
    def use_agent_store(self) -> bool:
        """Whether a round's ranks meet at a store that outlives it: they don't."""
        return False

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()

    def next_rendezvous(self) -> RendezvousInfo:
        """Raises: RoundsEnded."""
        if self._rounds:
            self._judge()
        self._rounds += 1
        self._is_growing = False
        forward = signal.signal(signal.SIGTERM, self._stop_waiting)
        try:
            info = self._inner.next_rendezvous()
            self._heartbeat.begin_round()
            return info
        except RendezvousError as error:
            raise self._end(ExitCode.PEER_LOST, "the node where all meet is away; this one comes back later") from error
        finally:
            signal.signal(signal.SIGTERM, forward)

    def num_nodes_waiting(self) -> int:
        """Always none: the agent would give the ranks 30 seconds to stop, whatever they have to save. They are told here,
        and the round ends when all have saved the same step."""
        try:
            is_awaited = self._inner.num_nodes_waiting() > 0
        except RendezvousError:
            return 0  # without the first node the ranks end by themselves
        if is_awaited and not self._is_growing:
            self._is_growing = True
            for child in psutil.Process().children():
                child.send_signal(signal.SIGTERM)
        return 0

    def shutdown(self) -> bool:
        """Closes it for all, unless they may go on without this node."""
        if self._code is not None and TABLE[self._code].retry is not Retry.NEVER:
            return True
        return self._inner.shutdown()

    def _stop_waiting(self, number: int, frame: FrameType | None) -> None:
        raise self._end(ExitCode.PREEMPTED, "told to stop while no step was under way; nothing is lost")

    def _judge(self) -> None:
        """Whether another round follows the one that has ended on this node. Raises: RoundsEnded."""
        words = [Termination.model_validate_json(file.read_bytes()) for file in sorted(self._last_words.iterdir())]
        for file in self._last_words.iterdir():
            file.unlink()
        ends = [(_CODES[each.reason], each) for each in words]
        for code, each in ends:
            if code != ExitCode.OK and TABLE[code].retry is Retry.NEVER:
                raise self._end(code, each)
        if self._stopping.is_set():
            saved = (each for code, each in ends if code == ExitCode.PREEMPTED)
            raise self._end(ExitCode.PREEMPTED, next(saved, "told to stop before the first step; nothing is lost"))
        failed = next((each for code, each in ends if TABLE[code].retry is Retry.COUNTED), None)
        # A rank that was killed leaves no words; nor does one that was told to stop before it could listen.
        is_silent = len(words) < self._processes and not self._is_growing and not self._heartbeat.lost.is_set()
        if failed is not None or is_silent:
            self._restarts += 1
            if self._restarts > self._elastic.max_restarts:
                raise self._end(ExitCode.ERROR, failed or "a rank was killed, and left no word")

    def _end(self, code: ExitCode, words: Termination | str) -> RoundsEnded:
        """What is to be raised."""
        self._code = code
        return RoundsEnded(code, build_termination(code, words) if isinstance(words, str) else words)


def register_rendezvous(
    elastic: ElasticPlan, processes: int, last_words: Path, stopping: threading.Event, heartbeat: Heartbeat
) -> str:
    """Make it known to torchrun; the name of its backend."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        backend, store = create_backend(parameters)
        inner = create_handler(store, backend, parameters)
        return ElasticRendezvous(inner, elastic, processes, last_words, stopping, heartbeat)

    # The stores of two rounds must not be one: a rank that comes late would meet the last round's.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    rendezvous_handler_registry.register(BACKEND, create)
    return BACKEND
