"""Runs a plan in the test's own process."""

import json
from pathlib import Path
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_api.progress import Progress, Result
from finetune_trainer.report.state import RunState


class Recorder:
    """A terminal that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.progresses: list[Progress] = []

    def event(self, name: str, message: str, **fields: Any) -> None:
        self.events.append((name, message))

    def progress(self, progress: Progress) -> None:
        self.progresses.append(progress)

    def close(self) -> None:
        """Nothing is held back."""

    def messages(self, name: str) -> list[str]:
        return [message for event, message in self.events if event == name]


def run(plan: TrainingPlan, recorder: Recorder | None = None, state: RunState | None = None) -> Result:
    """What ``__main__`` runs once plan, server and signals are set up; errors come out as exceptions."""
    from finetune_trainer.distributed import join_ranks
    from finetune_trainer.run import run_training
    from finetune_trainer.stop import StopRequest

    result = run_training(
        plan, join_ranks(plan.parallelism), state or RunState(plan.job), recorder or Recorder(), StopRequest()
    )
    assert result is not None
    return result


def losses(plan: TrainingPlan) -> list[float]:
    """The training loss of each logged step, out of the newest checkpoint."""
    newest = max(Path(plan.checkpoint.directory).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
