"""SIGTERM and SIGINT: told to stop, and when to listen."""

import os
import signal
import threading
from types import FrameType

from finetune_trainer.errors import PreemptedError


class StopRequest:
    """Inside the training loop a signal waits for the step's end, elsewhere it ends the run at once."""

    def __init__(self) -> None:
        self.requested = False
        self.in_training = False
        self.interruption: PreemptedError | None = None
        """What a signal raised. A library that was interrupted by it may let out an error of its own instead."""

    def install(self) -> None:
        """Take over both signals, where that is possible: only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)
            signal.signal(signal.SIGINT, self._handle)
            os.register_at_fork(after_in_child=self._shield)

    def _shield(self) -> None:
        """In a data loader's worker: a signal to the whole pod mustn't take it from the step that is being finished. torch
        puts a handler of its own into them, which blocked signals don't reach; they end with the process they serve."""
        if self.in_training:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # The first one is being answered; a launcher that closes its ranks sends another.
            return
        self.requested = True
        if not self.in_training:
            name = signal.Signals(number).name
            self.interruption = PreemptedError(
                f"told to stop by {name} while no step was under way; the next run goes on from here"
            )
            raise self.interruption
