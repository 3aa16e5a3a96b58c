"""When checkpoints are written, and how a run stops at one."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from finetune_api.plan import TrainingPlan
from finetune_trainer.checkpoint.keeper import Keeper
from finetune_trainer.checkpoint.marker import Marker
from finetune_trainer.distributed import Ranks
from finetune_trainer.errors import CheckpointLostError, PreemptedError
from finetune_trainer.evaluate.course import find_best_step, should_stop
from finetune_trainer.evaluate.loss import EvaluationAbandonedError
from finetune_trainer.stop import StopRequest


class TrainedAlreadyError(Exception):
    """The checkpoint resumed from is that of the last step, or of an early end: its weights are loaded, no step is left."""


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer save when the plan says so or the run has to stop, and the keeper complete what was saved.

    ``describe`` gives the marker of the present state, without files; ``saving`` is told the step of each save's begin.
    What is decided here, all ranks decide together: no rank may wait for another that goes on.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        ranks: Ranks,
        stop: StopRequest,
        keeper: Keeper,
        describe: Callable[[TrainerState], Marker],
        saving: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._ranks = ranks
        self._stop = stop
        self._keeper = keeper
        self._describe = describe
        self._saving = saving
        self._stopping = False
        self._saved_step = 0
        """Step of the newest checkpoint."""
        self._saved_at = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_step = state.global_step
        self._saved_at = time.monotonic()
        stopping = self._plan.training.early_stopping
        if _is_last(state) or (stopping is not None and should_stop(state.log_history, stopping)):
            # The Trainer would train one step more.
            raise TrainedAlreadyError

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stopping, due, lost = self._ranks.vote(
            self._stop.requested, self._is_due(state), self._keeper.problem is not None
        )
        if lost:
            self._give_up()
        if self._stopping:
            # Who asks us to stop doesn't wait for an evaluation; the run that goes on evaluates at its end.
            control.should_evaluate = False
        if self._stopping or due:
            self._request_save(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        checkpoint = self._plan.checkpoint
        by_epoch = checkpoint.every_steps is None and checkpoint.every_minutes is None
        if by_epoch and self._saved_step != state.global_step:
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
                self._keeper.amend(self._describe(state), TRAINER_STATE_NAME, state.save_to_json)
            return
        is_best = self._plan.checkpoint.keep_best and find_best_step(state.log_history) == state.global_step
        if is_best or (control.should_training_stop and not _is_last(state)):
            self._request_save(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Each rank has written its own random state; the marker has to see them all.
        self._ranks.barrier()
        best = find_best_step(state.log_history) if self._plan.checkpoint.keep_best else None
        self._keeper.keep(self._describe(state), best, at_once=self._stopping)
        self._saved_step = state.global_step
        self._saved_at = time.monotonic()
        self._require_kept()
        if self._stopping:
            raise PreemptedError(
                f"told to stop; a complete checkpoint of step {state.global_step} of {state.max_steps} was written"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._keeper.wait()
        self._require_kept()

    def _is_due(self, state: TrainerState) -> bool:
        checkpoint = self._plan.checkpoint
        if checkpoint.every_steps is not None:
            return state.global_step % checkpoint.every_steps == 0 or _is_last(state)
        if checkpoint.every_minutes is not None:
            # By one clock: the ranks' differ.
            late = self._ranks.is_main and time.monotonic() - self._saved_at >= 60 * checkpoint.every_minutes
            return late or _is_last(state)
        return False

    def _request_save(self, state: TrainerState, control: TrainerControl) -> None:
        control.should_save = True
        # The loss up to here goes into the checkpoint's history, and is looked at before it is saved.
        control.should_log = True
        self._saving(state.global_step)
        # What an earlier run left there has to be gone before a rank writes.
        self._keeper.clear(state.global_step)
        self._ranks.barrier()

    def _require_kept(self) -> None:
        if self._ranks.any(self._keeper.problem is not None):
            self._give_up()

    def _give_up(self) -> None:
        """Raises: CheckpointLostError on every rank; training on would be without a net."""
        problem = self._ranks.share(self._keeper.problem)
        raise CheckpointLostError(
            f"{problem}; the checkpoint before it is whole. Mend checkpoint.storage: the run goes on from there"
        )


def _is_last(state: TrainerState) -> bool:
    return state.global_step >= state.max_steps
