"""Settings recommended by model size, task and memory, as data; and the choice of a strategy. Pure."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

from finetune_api.matrix import find_exclusion
from finetune_api.memory import Estimate, ModelShape, estimate, find_shape
from finetune_api.methods import METHODS, MethodType
from finetune_api.objectives import ObjectiveType
from finetune_api.plan import (
    CheckpointPlan,
    DatasetPlan,
    HyperparameterPlan,
    JobIdentity,
    LoraPlan,
    MethodPlan,
    ModelPlan,
    ObjectivePlan,
    ObservabilityPlan,
    OutputPlan,
    ParallelismPlan,
    QuantizationPlan,
    ResolvedSource,
    TrainingPlan,
)
from finetune_api.strategies import STRATEGIES, StrategyType

Task = Literal["chat", "code", "classification", "reasoning"]
TASKS: tuple[Task, ...] = get_args(Task)

USABLE_SHARE = 0.9
"""Of a GPU's memory; the rest is for fragments and for what the estimate misses."""

GLOBAL_BATCH_SIZE = 16


class SizePreset(NamedTuple):
    """LoRA for models up to a size."""

    up_to: float
    """Parameters in billions."""
    rank: int
    dropout: float
    learning_rate: float


SIZES: tuple[SizePreset, ...] = (
    SizePreset(7, 16, 0.1, 2e-4),
    SizePreset(13, 16, 0.05, 2e-4),
    SizePreset(30, 32, 0.05, 1e-4),
    SizePreset(float("inf"), 64, 0.05, 1e-4),
)
"""Larger models take larger ranks and smaller steps (QLoRA, arXiv:2305.14314, halves the rate from 33B on)."""


class TaskPreset(NamedTuple):
    """What a task changes."""

    rank_factor: float
    learning_rate_factor: float
    max_length: int
    reason: str


TASK_PRESETS: dict[Task, TaskPreset] = {
    "chat": TaskPreset(1.0, 1.0, 2048, "following instructions is mostly there already"),
    "code": TaskPreset(1.5, 0.5, 4096, "code is long, exact, and bears smaller steps"),
    "classification": TaskPreset(0.5, 1.0, 512, "few labels are learned by few parameters"),
    "reasoning": TaskPreset(2.0, 1.0, 4096, "new ways of thinking need more parameters"),
}

RANK_LIMITS: tuple[tuple[float, int], ...] = ((24, 8), (48, 32))
"""(GiB of a GPU, largest rank on a smaller one)."""


class Setting(NamedTuple):
    """One recommended field of a FineTuneJob's spec."""

    field: str
    value: Any
    reason: str


class Recommendation(NamedTuple):
    """Settings, what they need, and whether that fits."""

    model: str
    shape: ModelShape
    gpus: int
    gpu_memory_gib: int
    settings: tuple[Setting, ...]
    estimate: Estimate
    fits: bool

    def build_job(self) -> dict[str, Any]:
        """A FineTuneJob with these settings, to be given its dataset."""
        spec: dict[str, Any] = {
            "model": {"source": self.model},
            "dataset": {"source": "pvc://data/train.jsonl", "validation": {"fraction": 0.1}},
        }
        for setting in self.settings:
            *sections, name = setting.field.split(".")
            part = spec
            for section in sections:
                part = part.setdefault(section, {})
            part[name] = list(setting.value) if isinstance(setting.value, tuple) else setting.value
        name = "".join(letter if letter.isalnum() else "-" for letter in self.model.rpartition("/")[2].lower())
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": f"tune-{name}"[:52].strip("-")},
            "spec": spec,
        }


def recommend(model: str, gpu_memory_gib: int, gpus: int = 1, task: Task = "chat") -> Recommendation | None:
    """The settings for supervised fine-tuning of ``model`` (a source or hub id) on ``gpus`` of so much memory each.

    Of what fits, the least costly to quality: lora before qlora, whole batches before single rows, all linear modules
    before two of them. None: the model's size is unknown.
    """
    shape = find_shape(model)
    if shape is None:
        return None
    drafts = list(_list_drafts(shape, gpu_memory_gib, gpus, task))
    told = [(draft, estimate(shape, draft)) for draft in drafts]
    fitting = [each for each in told if each[1].gib <= USABLE_SHARE * gpu_memory_gib]
    draft, needed = fitting[0] if fitting else min(told, key=lambda each: each[1].total)
    settings = tuple(_list_settings(draft, shape, needed, gpu_memory_gib, gpus, task))
    return Recommendation(model, shape, gpus, gpu_memory_gib, settings, needed, bool(fitting))


def choose_rank(shape: ModelShape, gpu_memory_gib: float | None, task: Task) -> int:
    """Rank of LoRA: by size, times the task's factor, at most what the memory's limit says; a multiple of 4."""
    rank = _find_size(shape).rank * TASK_PRESETS[task].rank_factor
    limits = [limit for below, limit in RANK_LIMITS if gpu_memory_gib is not None and gpu_memory_gib < below]
    return int(min([rank, *limits])) // 4 * 4


def choose_strategy(
    shape: ModelShape | None,
    method: MethodPlan,
    gpus: int,
    gpu_memory_gib: float | None,
    objective: ObjectiveType = "sft",
) -> tuple[StrategyType, str]:
    """The strategy that shares out no more than has to be, and why.

    ``None`` for a shape or memory that isn't known. A row of 2,048 tokens with gradient checkpointing is taken for the
    estimate.
    """
    if gpus <= 1:
        return "single", "there is one process"
    allowed = [name for name in _BY_COST if find_exclusion(method.type, objective, name) is None]
    if not allowed:
        return "ddp", "nothing else is supported for the method and the objective"
    if shape is None or gpu_memory_gib is None:
        plain = "ddp" if METHODS[method.type].adapter else "zero2"
        unknown = "the model's size" if shape is None else "the GPU's memory"
        chosen = plain if plain in allowed else allowed[0]
        why = "an adapter's states are small" if METHODS[method.type].adapter else "states and gradients are most of it"
        return chosen, f"{unknown} is unknown; {why}"
    needs = {name: estimate(shape, draft_plan(method, gpus, name, 1, 2048)).gib for name in allowed}
    usable = USABLE_SHARE * gpu_memory_gib
    for name in allowed:
        if needs[name] <= usable:
            tried = [f"{each} needs {needs[each]:.0f} GiB a GPU" for each in allowed[: allowed.index(name)]]
            return name, "; ".join([*tried, f"{name} needs {needs[name]:.0f} of {gpu_memory_gib:g} GiB a GPU"])
    least = min(allowed, key=needs.__getitem__)
    return least, f"nothing fits {gpu_memory_gib:g} GiB a GPU; {least} needs the least, {needs[least]:.0f} GiB"


_BY_COST: tuple[StrategyType, ...] = ("ddp", "zero1", "zero2", "fsdp", "zero3")
"""Strategies of several processes, in the order of what they send."""


def draft_plan(method: MethodPlan, gpus: int, strategy: StrategyType, batch: int, max_length: int) -> TrainingPlan:
    """A plan that says no more than the memory model reads: GPUs, bfloat16, gradient checkpointing."""
    nothing = ResolvedSource(uri="", kind="file", location="")
    return TrainingPlan(
        job=JobIdentity(name="draft", namespace="default", run_id=""),
        model=ModelPlan(
            source=nothing, dtype="bfloat16" if METHODS[method.type].adapter else "float32", attention="sdpa"
        ),
        dataset=DatasetPlan(source=nothing, format="auto"),
        method=method,
        objective=ObjectivePlan(type="sft", response_only=True),
        training=HyperparameterPlan(
            epochs=1.0,
            learning_rate=METHODS[method.type].learning_rate,
            scheduler="cosine",
            warmup_ratio=0.03,
            weight_decay=0.0,
            per_device_batch_size=batch,
            gradient_accumulation=max(1, GLOBAL_BATCH_SIZE // (batch * gpus)),
            max_length=max_length,
            gradient_checkpointing=True,
            optimizer="paged_adamw_32bit" if method.quantization is not None else "adamw_torch_fused",
            max_grad_norm=1.0,
            seed=42,
            precision="bf16",
            logging_steps=10,
        ),
        parallelism=ParallelismPlan(strategy=strategy, device="cuda", processes_per_node=gpus),
        checkpoint=CheckpointPlan(directory="", keep=1, resume="auto"),
        output=OutputPlan(directory="", artifacts=(), verify=False),
        observability=ObservabilityPlan(metrics_port=0),
        cache_directory="",
    )


def _find_size(shape: ModelShape) -> SizePreset:
    return next(size for size in SIZES if shape.parameters < size.up_to * 1e9)


def _list_drafts(shape: ModelShape, gpu_memory_gib: int, gpus: int, task: Task) -> Iterator[TrainingPlan]:
    """What is tried, best first."""
    rank, length = choose_rank(shape, gpu_memory_gib, task), TASK_PRESETS[task].max_length
    strategies: tuple[StrategyType, ...] = ("single",) if gpus == 1 else ("ddp", "fsdp", "zero3")
    for type_, targets, ranks, batches, lengths in (
        ("lora", ("all-linear",), (rank,), (8, 4, 2, 1), (length,)),
        ("qlora", ("all-linear",), (rank,), (4, 2, 1), (length,)),
        ("qlora", shape.few_targets or ("all-linear",), (min(rank, 8),), (1,), (length, length // 2, length // 4)),
    ):
        method = _build_method(type_, ranks[0], targets, _find_size(shape).dropout)  # type: ignore[arg-type]
        for strategy in strategies:
            if find_exclusion(method.type, "sft", strategy) is not None:
                continue
            for size in lengths:
                for batch in batches:
                    if batch * gpus <= GLOBAL_BATCH_SIZE:
                        yield draft_plan(method, gpus, strategy, batch, size)


def _build_method(type_: MethodType, rank: int, targets: tuple[str, ...], dropout: float) -> MethodPlan:
    lora = LoraPlan(rank=rank, alpha=2.0 * rank, dropout=dropout, target_modules=targets)
    if type_ == "lora":
        return MethodPlan(type="lora", lora=lora)
    quantization = QuantizationPlan(bits=4, type="nf4", double_quant=True, compute_dtype="bfloat16")
    return MethodPlan(type="qlora", lora=lora, quantization=quantization)


def _list_settings(
    draft: TrainingPlan, shape: ModelShape, needed: Estimate, gpu_memory_gib: int, gpus: int, task: Task
) -> Iterator[Setting]:
    size, wanted, lora, training = _find_size(shape), TASK_PRESETS[task], draft.method.lora, draft.training
    assert lora is not None
    billions = f"{shape.parameters / 1e9:.1f}B parameters"
    fit = f"needs {needed.gib:.1f} of {gpu_memory_gib:g} GiB a GPU by the estimate"
    whole = shape.parameters * 2 / 2**30
    yield Setting(
        "method.type",
        draft.method.type,
        f"the base in 16 bits ({whole:.1f} GiB) fits" if draft.method.type == "lora" else f"4 bits a weight: {whole:.1f} GiB of 16-bit weights leave too little",
    )  # fmt: skip
    untrimmed = choose_rank(shape, None, task)
    limited = "" if lora.rank == untrimmed else f"; {untrimmed} but for {gpu_memory_gib:g} GiB"
    yield Setting(
        "method.rank", lora.rank, f"{size.rank} for {billions} x {wanted.rank_factor:g}: {wanted.reason}{limited}"
    )
    yield Setting("method.alpha", lora.alpha, "2 x rank")
    yield Setting(
        "method.dropout", lora.dropout, "small models overfit sooner" if size.dropout > 0.05 else "mild regularisation"
    )
    yield Setting(
        "method.targetModules",
        lora.target_modules,
        "every linear module comes closest to full fine-tuning (QLoRA paper)" if lora.target_modules == ("all-linear",) else "the fewest that still learn well (LoRA paper): memory is short",
    )  # fmt: skip
    yield Setting(
        "training.learningRate", size.learning_rate * wanted.learning_rate_factor, f"usual for {billions}, {task}"
    )
    yield Setting(
        "training.maxLength",
        training.max_length,
        f"usual for {task}"
        if training.max_length == wanted.max_length
        else f"{wanted.max_length} is usual for {task}, but memory is short",
    )
    yield Setting("training.perDeviceBatchSize", training.per_device_batch_size, fit)
    yield Setting(
        "training.gradientAccumulation",
        training.gradient_accumulation,
        f"makes {training.per_device_batch_size * training.gradient_accumulation * gpus} rows an optimiser step",
    )
    yield Setting("training.gradientCheckpointing", True, "GPU memory is dearer than time")
    yield Setting(
        "parallelism.strategy", draft.parallelism.strategy, STRATEGIES[draft.parallelism.strategy].description
    )
    yield Setting("resources.gpu.count", gpus, "as asked")
    yield Setting("resources.gpu.memoryGiB", gpu_memory_gib, "as asked")
