"""How far a run has come, saved or not: what tells a run that goes on how many steps are lost."""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.resume import ResumePoint
from finetune_trainer.store import Store

_NAME = "reached.json"
_INTERVAL = 10.0
"""Seconds between two writes to S3, which takes requests and money for each, and as long as one may take."""


def count_lost_steps(plan: TrainingPlan, resume: ResumePoint | None) -> int:
    """Optimiser steps of this run that were done and have to be done again, all its interruptions together. Where checkpoints
    are in S3 those of the last seconds before an end without notice are missing."""
    content = Store(plan.checkpoint.directory).read(_NAME)
    step = resume.marker.step if resume else 0
    lost = resume.marker.lost_steps if resume else 0
    if content is None:
        return lost
    reached = json.loads(content)
    if reached["runId"] != plan.job.run_id:
        return lost
    return int(reached["lostSteps"] + max(0, reached["step"] - step))


class ReachedCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the step down beside the checkpoints whenever the Trainer logs, on rank 0."""

    def __init__(self, plan: TrainingPlan, lost_steps: int) -> None:
        self._run_id = plan.job.run_id
        self._lost_steps = lost_steps
        self._store = Store(plan.checkpoint.directory, _INTERVAL) if plan.checkpoint.is_remote else None
        self._path = Path(plan.checkpoint.directory) / _NAME
        self._writing: threading.Thread | None = None
        self._due = 0.0
        if self._store is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        reached = json.dumps({"runId": self._run_id, "step": state.global_step, "lostSteps": self._lost_steps})
        if self._store is not None:
            self._send(self._store, reached)
            return
        partial = self._path.with_suffix(".partial")
        # Not forced on the disk: it may be a step old after a power cut, and mustn't slow the training.
        partial.write_text(reached)
        partial.replace(self._path)

    def _send(self, store: Store, reached: str) -> None:
        now = time.monotonic()
        if now < self._due or (self._writing is not None and self._writing.is_alive()):
            return
        self._due = now + _INTERVAL

        def write() -> None:
            # It is only for the count; a store that is away for long ends the run at its next checkpoint.
            with suppress(OSError):
                store.write(_NAME, reached.encode())

        self._writing = threading.Thread(target=write, name="reached", daemon=True)
        self._writing.start()
