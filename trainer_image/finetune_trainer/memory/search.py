"""The search for a batch that fits the memory: tried before the first step, without a trace in the training."""

import gc
import heapq
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from finetune_api.memory import OPTIMIZER_BYTES, split_batch
from finetune_api.plan import TrainingPlan
from finetune_trainer.distributed import Ranks
from finetune_trainer.errors import is_out_of_memory


def fit_batch(
    trainer: Any, plan: TrainingPlan, ranks: Ranks, resumed: Path | None, tell: Callable[[str], None]
) -> None:
    """Lower the trainer's batch, and raise the accumulation by as much, until a step on the longest rows fits.

    The rows of an optimiser step stay the same ones. ``resumed``: the checkpoint whose batch the run goes on with.
    Raises: the out-of-memory error when not even one row fits.
    """
    rows = plan.training.per_device_batch_size * plan.training.gradient_accumulation
    if resumed is not None:
        batch = json.loads((resumed / "trainer_state.json").read_text())["train_batch_size"]
    else:
        batch = _search(trainer, plan, ranks, tell)
    trainer.args.per_device_train_batch_size = batch
    trainer.args.gradient_accumulation_steps = rows // batch
    trainer._train_batch_size = trainer.args.train_batch_size


def _search(trainer: Any, plan: TrainingPlan, ranks: Ranks, tell: Callable[[str], None]) -> int:
    batch = plan.training.per_device_batch_size
    accumulation = plan.training.gradient_accumulation
    longest = _list_longest(trainer.train_dataset, batch)
    while True:
        error = _try_step(trainer, plan, longest[:batch])
        if not ranks.any(error is not None):
            tell(f"a batch of {batch} fits the memory, accumulated {accumulation} times")
            return batch
        if batch == 1:
            raise error or MemoryError("another process ran out of memory at a batch of 1")
        too_large = batch
        batch, accumulation = split_batch(batch, accumulation)
        tell(f"a batch of {too_large} does not fit the memory: trying {batch}, accumulated {accumulation} times")


def _list_longest(rows: Any, count: int) -> list[dict[str, Any]]:
    """The rows of the most tokens, longest first."""
    lengths = [sum(len(value) for value in row.values() if isinstance(value, list)) for row in rows]
    return [rows[index] for index in heapq.nlargest(count, range(len(lengths)), key=lengths.__getitem__)]


def _try_step(trainer: Any, plan: TrainingPlan, rows: list[dict[str, Any]]) -> BaseException | None:
    """The error when a forward and backward pass, with the optimiser's states to come, does not fit."""
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    # DDP keeps the gradients a second time, in the buckets that it sends.
    buckets = 4 if plan.parallelism.strategy == "ddp" else 0
    later = sum(each.numel() for each in trained) * (OPTIMIZER_BYTES.get(plan.training.optimizer, 8) + buckets)
    failure: BaseException | None = None
    with _without_trace(trainer):
        try:
            reserved = torch.empty(later, dtype=torch.uint8, device=trainer.args.device)
            with trainer.accelerator.autocast():
                trainer.training_step(trainer.model, trainer.data_collator(rows))
            del reserved
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Its frames hold the tensors of the step.
            failure = error.with_traceback(None)
    gc.collect()
    if trainer.args.device.type == "cuda":
        torch.cuda.empty_cache()
    return failure


@contextmanager
def _without_trace(trainer: Any) -> Iterator[None]:
    """What a step leaves behind is taken back: random state, gradients, and what TRL's trainers count for their log."""
    counted = {name: getattr(trainer, name) for name in ("_metrics", "_total_train_tokens") if hasattr(trainer, name)}
    for name, value in counted.items():
        if isinstance(value, dict):
            setattr(trainer, name, {mode: type(each)(list) for mode, each in value.items()})
    if trainer.args.gradient_checkpointing:
        # As the Trainer does when the training begins.
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = 1
    # Alone: a process that runs out of memory would leave the others waiting for its figures.
    trainer.accelerator.gather_for_metrics = trainer.accelerator.gather = lambda value, *args, **kwargs: value
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        del trainer.accelerator.gather_for_metrics, trainer.accelerator.gather
        trainer.model.zero_grad(set_to_none=True)
        for name, value in counted.items():
            setattr(trainer, name, value)
