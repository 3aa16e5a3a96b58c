"""How the plain scripts are timed: as the trainer times itself, from each optimiser step's begin to its end."""

import json
import resource
import time
from typing import Any

from transformers import TrainerCallback


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Adds up the optimiser steps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.monotonic() - self._began

    def report(self, trainer: Any) -> None:
        """Prints the figures of ``benchmarks.trainer`` as its last line."""
        print(
            json.dumps(
                {
                    "tokens": int(trainer.state.num_input_tokens_seen),
                    "seconds": self.seconds,
                    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                    "loss": next(e["loss"] for e in reversed(trainer.state.log_history) if "loss" in e),
                }
            )
        )
