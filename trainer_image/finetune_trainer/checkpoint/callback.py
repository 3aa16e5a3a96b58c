"""When checkpoints are written, what makes them complete, and how a run stops at one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.marker import Marker, write_marker
from finetune_trainer.checkpoint.resume import rotate_checkpoints
from finetune_trainer.distributed import Ranks
from finetune_trainer.errors import PreemptedError
from finetune_trainer.evaluate.course import find_best_step, should_stop
from finetune_trainer.evaluate.loss import EvaluationAbandonedError
from finetune_trainer.stop import StopRequest


class TrainedAlreadyError(Exception):
    """The checkpoint resumed from is that of the last step, or of an early end: its weights are loaded, no step is left."""


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer save when the plan says so or the run has to stop, and completes the checkpoint with its marker.

    ``describe`` gives the marker of the present state, without files.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        ranks: Ranks,
        stop: StopRequest,
        describe: Callable[[TrainerState], Marker],
        announce: Callable[[int, bool], None],
    ) -> None:
        self._plan = plan
        self._ranks = ranks
        self._stop = stop
        self._describe = describe
        self._announce = announce
        self._stopping = False
        self._saved_step = 0
        """Step of the newest complete checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_step = state.global_step
        stopping = self._plan.training.early_stopping
        if _is_last(state) or (stopping is not None and should_stop(state.log_history, stopping)):
            # The Trainer would train one step more.
            raise TrainedAlreadyError

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopping = self._ranks.any(self._stop.requested)
        every = self._plan.checkpoint.every_steps
        if self._stopping:
            # Who asks us to stop doesn't wait for an evaluation; the run that goes on evaluates at its end.
            control.should_evaluate = False
        if self._stopping or (every is not None and (state.global_step % every == 0 or _is_last(state))):
            self._request_save(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._plan.checkpoint.every_steps is None and self._saved_step != state.global_step:
            self._request_save(state, control)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._ranks.any(self._stop.requested):
            raise EvaluationAbandonedError

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Behind ``EarlyStopping``: an early end, or the best model so far, is saved whatever the schedule says."""
        if state.global_step == 0 or control.should_save:
            return
        if state.global_step == self._saved_step:
            if self._ranks.is_main:
                # Who goes on from it has to know this evaluation.
                state.save_to_json(str(self._folder(state) / TRAINER_STATE_NAME))
                write_marker(self._folder(state), self._describe(state))
            return
        is_best = self._plan.checkpoint.keep_best and find_best_step(state.log_history) == state.global_step
        if is_best or (control.should_training_stop and not _is_last(state)):
            self._request_save(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Each rank has written its own random state; the marker has to see them all.
        self._ranks.barrier()
        if self._ranks.is_main:
            write_marker(self._folder(state), self._describe(state))
            best = find_best_step(state.log_history) if self._plan.checkpoint.keep_best else None
            rotate_checkpoints(self._plan, state.global_step, best)
        self._saved_step = state.global_step
        self._announce(state.global_step, False)
        self._ranks.barrier()
        if self._stopping:
            raise PreemptedError(
                f"told to stop; a complete checkpoint of step {state.global_step} of {state.max_steps} was written"
            )

    def _request_save(self, state: TrainerState, control: TrainerControl) -> None:
        control.should_save = True
        # The loss up to here goes into the checkpoint's history, and is looked at before it is saved.
        control.should_log = True
        self._announce(state.global_step, True)
        if self._ranks.is_main:
            # What an earlier run left there has to be gone before a rank writes.
            shutil.rmtree(self._folder(state), ignore_errors=True)
        self._ranks.barrier()

    def _folder(self, state: TrainerState) -> Path:
        return Path(self._plan.checkpoint.directory) / f"checkpoint-{state.global_step}"


def _is_last(state: TrainerState) -> bool:
    return state.global_step >= state.max_steps
