"""The four memory levels: what each changes in a plan, and why. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from finetune_api.compatibility import BITSANDBYTES
from finetune_api.matrix import find_exclusion
from finetune_api.memory import (
    OFFLOADING_OBJECTIVES,
    Change,
    ModelShape,
    estimate,
    find_search_refusal,
    split_batch,
)
from finetune_api.plan import QuantizationPlan, TrainingPlan
from finetune_api.presets import USABLE_SHARE, choose_strategy

MemoryOptimization = Literal["auto", "none", 1, 2, 3, 4]


class LevelStep(NamedTuple):
    """One thing that a level changed."""

    level: int
    changes: tuple[Change, ...]
    reason: str

    def __str__(self) -> str:
        told = ", ".join(f"{each.field} {each.before} -> {each.after}" for each in self.changes)
        return f"level {self.level}: {told}: {self.reason}"


@dataclass(frozen=True)
class Leveled:
    """The plan after its levels."""

    plan: TrainingPlan
    steps: tuple[LevelStep, ...]
    reason: str
    """Why no more, or no less, was done."""


@dataclass(frozen=True)
class _Situation:
    plan: TrainingPlan
    given: frozenset[str]
    shape: ModelShape | None
    memory: float | None
    kernels: bool

    @property
    def fits(self) -> bool | None:
        """None: unknown."""
        if self.shape is None or self.memory is None:
            return None
        return estimate(self.shape, self.plan).gib <= USABLE_SHARE * self.memory


_Taken = tuple[TrainingPlan, tuple[Change, ...], str]
_Step = Callable[[_Situation], _Taken | None]


def apply_levels(
    plan: TrainingPlan,
    optimization: MemoryOptimization,
    given: frozenset[str],
    shape: ModelShape | None,
    gpu_memory_gib: float | None,
    kernels: bool = False,
) -> Leveled:
    """The plan with the levels of ``memory.optimization`` applied, each on top of those below it.

    Called by ``decide_plan`` once the plan stands and before the engine's configuration is rendered for
    ``parallelism.strategy``, which level 4 may change. Each of ``steps`` is to become a Decision of its changes' fields.

    Args:
        optimization: auto takes the steps that lower the estimate, in the order of the levels, until it fits, and none
            when the model's size or the GPU's memory is unknown.
        given: fields that the person wrote, such as ``training.gradientCheckpointing``; these are never changed.
        shape: ``finetune_api.memory.find_shape(spec.model.source)``.
        gpu_memory_gib: of one GPU; None: unknown.
        kernels: the trainer image was built with the optional kernels.
    """
    situation = _Situation(plan, given, shape, gpu_memory_gib, kernels)
    if optimization == "none":
        return Leveled(plan, (), "memory.optimization none")
    if optimization == "auto" and situation.fits is not False:
        unknown = "the model's size" if shape is None else "the GPU's memory"
        return Leveled(plan, (), "the plan fits" if situation.fits else f"{unknown} is unknown: nothing is changed")
    highest = 4 if optimization == "auto" else optimization
    steps: list[LevelStep] = []
    for level, step in _list_steps(highest):
        if optimization == "auto" and situation.fits:
            break
        if (taken := step(situation)) is None:
            continue
        changed, changes, reason = taken
        after = _Situation(changed, given, shape, gpu_memory_gib, kernels)
        if optimization != "auto" or _needs_less(after, situation):
            situation = after
            steps.append(LevelStep(level, changes, reason))
    if situation.fits is None:
        return Leveled(situation.plan, tuple(steps), f"levels up to {highest}, as asked")
    assert shape is not None
    needed = f"{estimate(shape, situation.plan).gib:.1f} of {gpu_memory_gib:g} GiB a GPU by the estimate"
    return Leveled(situation.plan, tuple(steps), f"{'fits' if situation.fits else 'does not fit'}: {needed}")


def _needs_less(after: _Situation, before: _Situation) -> bool:
    assert before.shape is not None
    return estimate(before.shape, after.plan).total < estimate(before.shape, before.plan).total


_SPEC_NAMES = {"batch_search": "autoFindBatchSize"}
"""Fields of the plan that a FineTuneJob has under another name."""


def _list_steps(highest: int) -> Iterator[tuple[int, _Step]]:
    for level in range(1, highest + 1):
        for step in _LEVELS[level]:
            yield level, step


def _change(situation: _Situation, section: str, reason: str, **values: Any) -> _Taken | None:
    """The plan with those of ``values`` that are new and not the person's own; None when none is left."""
    part = getattr(situation.plan, section)
    changes = {}
    for name, value in values.items():
        field = f"{section}.{_SPEC_NAMES.get(name) or type(part).model_fields[name].alias}"
        if getattr(part, name) != value and field not in situation.given:
            changes[name] = Change(field, getattr(part, name), value)
    if not changes:
        return None
    update = {name: change.after for name, change in changes.items()}
    changed = situation.plan.model_copy(update={section: part.model_copy(update=update)})
    return changed, tuple(changes.values()), reason


def _on_gpu(situation: _Situation) -> bool:
    return situation.plan.parallelism.device == "cuda"


def _attend(situation: _Situation) -> _Taken | None:
    if situation.plan.model.attention != "eager":
        return None
    return _change(situation, "model", "no scores of tokens x tokens are kept", attention="sdpa")


def _fuse(situation: _Situation) -> _Taken | None:
    if not (situation.kernels and _on_gpu(situation)):
        return None
    return _change(situation, "training", "fused kernels keep fewer activations", fused_kernels=True)


def _lower_precision(situation: _Situation) -> _Taken | None:
    if not _on_gpu(situation) or situation.plan.training.precision not in ("fp32", "tf32"):
        return None
    return _change(situation, "training", "16-bit activations with float32's range", precision="bf16")


def _load_ahead(situation: _Situation) -> _Taken | None:
    if not _on_gpu(situation) or situation.plan.training.data_loader_workers:
        return None
    return _change(situation, "training", "rows are ready before the GPU asks", data_loader_workers=2)


def _checkpoint(situation: _Situation) -> _Taken | None:
    # PEFT's prefixes are a cache of keys and values, which checkpointing does without.
    if situation.plan.method.type in ("prefix", "p-tuning-v2"):
        return None
    return _change(
        situation, "training", "activations are computed again for about a third more time", gradient_checkpointing=True
    )


def _shrink_batch(situation: _Situation) -> _Taken | None:
    """Until it fits, where that can be told; else the trainer tries."""
    training, changed = situation.plan.training, situation
    if situation.fits is None:
        plan = situation.plan
        if find_search_refusal(plan.objective.type, plan.parallelism.strategy, plan.dataset.streaming) is not None:
            return None
        return _change(situation, "training", "the largest batch that fits is found by trying", batch_search=True)
    if {"training.perDeviceBatchSize", "training.gradientAccumulation"} & situation.given:
        return None
    batch, accumulation = training.per_device_batch_size, training.gradient_accumulation
    while batch > 1 and not changed.fits:
        batch, accumulation = split_batch(batch, accumulation)
        smaller = training.model_copy(update={"per_device_batch_size": batch, "gradient_accumulation": accumulation})
        plan = situation.plan.model_copy(update={"training": smaller})
        changed = _Situation(plan, situation.given, situation.shape, situation.memory, situation.kernels)
    return _change(
        situation,
        "training",
        "the same rows an optimiser step, fewer at once",
        per_device_batch_size=batch,
        gradient_accumulation=accumulation,
    )


def _fit_length(situation: _Situation) -> _Taken | None:
    return _change(situation, "training", "95 of 100 rows stay whole, none is padded further", max_length=0)


def _quantise(situation: _Situation) -> _Taken | None:
    plan = situation.plan
    if plan.method.type != "lora" or "method.type" in situation.given:
        return None
    if find_exclusion("qlora", plan.objective.type, plan.parallelism.strategy) is not None:
        return None
    quantization = QuantizationPlan(bits=4, type="nf4", double_quant=True, compute_dtype=plan.model.dtype)
    return _change(situation, "method", "4 bits a frozen weight", type="qlora", quantization=quantization)


def _trim(situation: _Situation) -> _Taken | None:
    method = situation.plan.method
    if method.lora is None:
        return None
    rank = method.lora.rank if "method.rank" in situation.given else min(method.lora.rank, 8)
    targets = method.lora.target_modules
    few = situation.shape.few_targets if situation.shape is not None else None
    if targets == ("all-linear",) and few is not None and "method.targetModules" not in situation.given:
        targets = few
    scale = method.lora.alpha / method.lora.rank
    alpha = method.lora.alpha if "method.alpha" in situation.given else scale * rank
    trimmed = method.lora.model_copy(update={"rank": rank, "alpha": alpha, "target_modules": targets})
    if trimmed == method.lora:
        return None
    names = {"rank": "method.rank", "alpha": "method.alpha", "target_modules": "method.targetModules"}
    changes = tuple(
        Change(field, getattr(method.lora, name), getattr(trimmed, name))
        for name, field in names.items()
        if getattr(method.lora, name) != getattr(trimmed, name)
    )
    changed = situation.plan.model_copy(update={"method": method.model_copy(update={"lora": trimmed})})
    return changed, changes, "fewer trained parameters, the scale kept"


def _shrink_optimizer(situation: _Situation) -> _Taken | None:
    plan = situation.plan
    # bitsandbytes doesn't know the sharded tensors of FSDP.
    if "adamw" not in plan.training.optimizer or plan.parallelism.strategy == "fsdp":
        return None
    optimizer = "paged_adamw_8bit" if _on_gpu(situation) else "adamw_8bit"
    return _change(situation, "training", "two bytes of state instead of eight", optimizer=optimizer)


def _offload(situation: _Situation) -> _Taken | None:
    if not _on_gpu(situation) or situation.plan.objective.type not in OFFLOADING_OBJECTIVES:
        return None
    return _change(situation, "training", "activations wait in host memory", activation_offload=True)


def _share_out(situation: _Situation) -> _Taken | None:
    plan = situation.plan
    if plan.parallelism.world_size == 1 or not _on_gpu(situation):
        return None
    strategy, reason = choose_strategy(
        situation.shape, plan.method, plan.parallelism.world_size, situation.memory, plan.objective.type
    )
    unsharded = strategy == "fsdp" and plan.training.optimizer in BITSANDBYTES
    if situation.fits is None or strategy == "ddp" or unsharded:
        strategy, reason = "zero3", "weights, gradients and states are shared out"
        if find_exclusion(plan.method.type, plan.objective.type, strategy) is not None:
            return None
    taken = _change(situation, "parallelism", reason, strategy=strategy)
    if taken is None or not plan.training.batch_search:
        return taken
    if find_search_refusal(plan.objective.type, strategy, plan.dataset.streaming) is None:
        return taken
    if "training.autoFindBatchSize" in situation.given:
        return None
    changed, changes, reason = taken
    training = changed.training.model_copy(update={"batch_search": False})
    change = Change("training.autoFindBatchSize", True, False)
    return changed.model_copy(update={"training": training}), (*changes, change), reason


_LEVELS: dict[int, tuple[_Step, ...]] = {
    1: (_attend, _fuse, _lower_precision, _load_ahead),
    2: (_checkpoint, _shrink_batch, _fit_length),
    3: (_quantise, _trim, _shrink_optimizer, _offload),
    4: (_share_out,),
}
"""1 costs nothing, 2 time, 3 some quality, 4 communication."""
