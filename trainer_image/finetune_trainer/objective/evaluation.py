"""Evaluations that leave no trace in the training."""

from typing import Any

import torch

from finetune_trainer.evaluate.loss import EvaluationAbandonedError
from finetune_trainer.model.whole import drop_fetched


class NeutralEvaluation:
    """Mixed into a Trainer: its evaluations leave no trace in the random state.

    A data loader draws from torch's generator when it starts, so with TRL alone an evaluation changes the dropout of
    the steps after it, and a run that resumes behind an evaluation differs from one that never stopped.
    """

    args: Any

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                return super().evaluate(*args, **kwargs)  # type: ignore[misc]
            except EvaluationAbandonedError:
                return {}
            finally:
                drop_fetched(self)
