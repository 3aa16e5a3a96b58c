"""Hands what the Trainer's loop tells to the state and the terminal, and stops a run whose loss is no number."""

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.errors import InvalidInputError
from finetune_trainer.report.state import RunState, Throughput
from finetune_trainer.report.terminal import Terminal


class ReportCallback(TrainerCallback):  # type: ignore[misc]
    """Progress of the steps. Time counts from a step's begin to its end: evaluations and checkpoints are no training."""

    def __init__(self, state: RunState, terminal: Terminal, learning_rate: float, precision: str) -> None:
        self.train_seconds = 0.0
        """Seconds in optimiser steps; a resumed run starts with those of its checkpoint."""
        self._run = state
        self._terminal = terminal
        self._precision = precision
        self._advice = (
            f"lower training.learningRate (now {learning_rate:g}), or use training.precision fp32 (now {precision})"
        )
        self._step_began = 0.0
        self._window_seconds = 0.0
        self._window_tokens = 0
        self._window_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._open_window(state)
        self._run.set_throughput(Throughput(tokens_seen=state.num_input_tokens_seen))
        self._run.update(
            stage="training", step=state.global_step, total_steps=state.max_steps, epoch=float(state.epoch or 0)
        )
        self._terminal.progress(self._run.progress)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        elapsed = time.monotonic() - self._step_began
        self.train_seconds += elapsed
        self._window_seconds += elapsed
        self._run.update(stage="training", step=state.global_step, epoch=float(state.epoch or 0))
        if control.should_evaluate:
            self._run.set_stage("evaluating")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_evaluate:
            self._run.set_stage("evaluating")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._require_numbers(state.global_step, logs)
            self._close_window(state)
            self._run.update(loss=logs["loss"], grad_norm=logs.get("grad_norm"), learning_rate=logs["learning_rate"])
            self._terminal.progress(self._run.progress)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._run.update(eval_loss=(metrics or {}).get("eval_loss"))
        self._terminal.progress(self._run.progress)

    def _open_window(self, state: TrainerState) -> None:
        self._window_seconds = 0.0
        self._window_tokens = state.num_input_tokens_seen
        self._window_step = state.global_step

    def _close_window(self, state: TrainerState) -> None:
        step_seconds = self._window_seconds / max(1, state.global_step - self._window_step)
        tokens = state.num_input_tokens_seen - self._window_tokens
        self._run.set_throughput(Throughput(tokens_seen=state.num_input_tokens_seen, step_seconds=step_seconds))
        self._run.update(
            tokens_per_second=tokens / self._window_seconds,
            eta_seconds=step_seconds * (state.max_steps - state.global_step),
        )
        self._open_window(state)

    def _require_numbers(self, step: int, logs: dict[str, float]) -> None:
        # With fp16 the gradient scaler meets infinite gradients on purpose, and skips these steps.
        for name in ("loss",) if self._precision == "fp16" else ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise InvalidInputError(f"the {name.replace('_', ' ')} at step {step} is {logs[name]}: {self._advice}")
