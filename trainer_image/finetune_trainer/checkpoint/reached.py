"""How far a run has come, saved or not: what tells a run that goes on how many steps are lost."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.resume import ResumePoint

_NAME = "reached.json"


def _locate(plan: TrainingPlan) -> Path:
    """Beside the checkpoints; with the output where these are in S3, which would be asked at each step's end."""
    return Path(plan.output.directory if plan.checkpoint.is_remote else plan.checkpoint.directory) / _NAME


def count_lost_steps(plan: TrainingPlan, resume: ResumePoint | None) -> int:
    """Optimiser steps of this run that were done and have to be done again, all its interruptions together."""
    path = _locate(plan)
    step = resume.marker.step if resume else 0
    lost = resume.marker.lost_steps if resume else 0
    if not path.exists():
        return lost
    reached = json.loads(path.read_text())
    if reached["runId"] != plan.job.run_id:
        return lost
    return int(reached["lostSteps"] + max(0, reached["step"] - step))


class ReachedCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the step down whenever the Trainer logs, on rank 0."""

    def __init__(self, plan: TrainingPlan, lost_steps: int) -> None:
        self._run_id = plan.job.run_id
        self._path = _locate(plan)
        self._lost_steps = lost_steps
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        reached = {"runId": self._run_id, "step": state.global_step, "lostSteps": self._lost_steps}
        partial = self._path.with_suffix(".partial")
        # Not forced on the disk: it may be a step old after a power cut, and mustn't slow the training.
        partial.write_text(json.dumps(reached))
        partial.replace(self._path)
