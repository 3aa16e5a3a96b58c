"""FineTuneJob -> TrainingPlan, and for each value why it is what it is. Pure: no clock, no environment, no API."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from finetune_api import plan as p
from finetune_api.spec import FineTuneJob, FineTuneJobSpec
from finetune_operator.plan.layout import Layout, parse_source, resolve_source
from finetune_operator.settings import Settings

UNBORN_UID = "00000000-0000-0000-0000-000000000000"
"""Stands for the uid of a FineTuneJob that no API server has seen yet."""

GLOBAL_BATCH_SIZE = 16

T = TypeVar("T")
Origin = Literal["you", "default", "platform", "derived"]


@dataclass(frozen=True)
class Decision:
    """One value of the job: where it came from, and why."""

    path: str
    value: Any
    origin: Origin
    reason: str


@dataclass
class Decisions:
    """Collects the decisions of one job."""

    made: list[Decision] = field(default_factory=list)

    def choose(self, path: str, given: T | None, fallback: T, reason: str, origin: Origin = "derived") -> T:
        """``given`` if the person gave it, else ``fallback`` for ``reason``."""
        value, because = (fallback, reason) if given is None else (given, "set in the file")
        self.made.append(Decision(path, value, origin if given is None else "you", because))
        return value


@dataclass(frozen=True)
class PodResources:
    """Quantities of the trainer's pod."""

    cpu: str
    memory: str
    shared_memory: str
    output_size: str


@dataclass(frozen=True)
class Decided:
    """The plan, what its pod asks for, and the reasons behind both."""

    plan: p.TrainingPlan
    resources: PodResources
    decisions: tuple[Decision, ...]


def decide_plan(job: FineTuneJob, settings: Settings, layout: Layout) -> Decided:
    """Resolves all that the trainer needs. The job has passed ``parse_finetunejob``."""
    spec, notes = job.spec, Decisions()
    gpus = spec.resources.gpu.count
    run_id = job.metadata.uid or UNBORN_UID
    precision: Any = notes.choose(
        "training.precision",
        spec.training.precision,
        "bf16" if gpus else "fp32",
        "bf16 has float32's range at half the cost on GPUs" if gpus else "CPUs are fastest and exact in fp32",
    )
    dtype = _decide_dtype(spec, notes)
    output = _decide_output_directory(spec, notes, job.metadata.name, layout)
    plan = p.TrainingPlan(
        job=p.JobIdentity(name=job.metadata.name, namespace=job.metadata.namespace, run_id=run_id),
        model=p.ModelPlan(
            source=resolve_source(spec.model.source, "model", layout),
            revision=spec.model.revision,
            dtype=dtype,
            attention=spec.model.attention,
            chat_template=spec.model.chat_template,
            trust_remote_code=spec.model.trust_remote_code,
        ),
        dataset=_decide_dataset(spec, notes, layout),
        method=_decide_method(spec, notes, dtype),
        objective=p.ObjectivePlan(
            type=spec.objective.type,
            response_only=notes.choose("objective.responseOnly", spec.objective.response_only, spec.dataset.format != "text", "rows of text have no prompt" if spec.dataset.format == "text" else "learning to answer, not to ask"),
        ),
        training=_decide_hyperparameters(spec, notes, precision),
        evaluation=p.EvaluationPlan(every_steps=spec.evaluation.every_steps, samples=tuple(spec.evaluation.samples or ())),
        parallelism=p.ParallelismPlan(strategy="ddp" if gpus > 1 else "single", device="cuda" if gpus else "cpu", processes_per_node=max(1, gpus)),
        checkpoint=p.CheckpointPlan(
            directory=f"{output}/checkpoints/{run_id}",
            every_steps=spec.checkpoint.every_steps,
            keep=spec.checkpoint.keep,
            resume=spec.checkpoint.resume,
        ),
        output=p.OutputPlan(
            directory=output,
            artifacts=tuple(notes.choose("output.artifacts", spec.output.artifacts, ["merged" if spec.method.type == "full" else "adapter"], "what the method trains")),
            verify=spec.output.verify,
        ),
        observability=p.ObservabilityPlan(metrics_port=spec.observability.metrics_port, trackers=tuple(spec.observability.trackers or ())),
        cache_directory=layout.cache,
    )  # fmt: skip
    resources = _decide_resources(job, settings, notes)
    return Decided(plan, resources, tuple(notes.made))


def _decide_resources(job: FineTuneJob, settings: Settings, notes: Decisions) -> PodResources:
    """What the pod asks for: the person's figures, else the platform's, by GPU."""
    asked, gpus = job.spec.resources, job.spec.resources.gpu.count
    share = settings.gpu_defaults if gpus else settings.cpu_defaults
    times = max(1, gpus)
    because = f"the platform's share for {gpus} GPU(s)" if gpus else "the platform's share for a job without a GPU"
    volume = job.spec.output.volume
    return PodResources(
        cpu=notes.choose("resources.cpu", asked.cpu, _times(share.cpu, times), because, "platform"),
        memory=notes.choose("resources.memory", asked.memory, _times(share.memory, times), because, "platform"),
        shared_memory=notes.choose("resources.sharedMemory", asked.shared_memory, share.shared_memory, because, "platform"),
        output_size=notes.choose("output.volume.size", volume.size if volume else None, settings.output.size, "the platform's size for output claims", "platform"),
    )  # fmt: skip


def _times(quantity: str, factor: int) -> str:
    digits = quantity.rstrip("mkKMGTPEi")
    number = float(digits) * factor
    return f"{int(number) if number.is_integer() else number}{quantity[len(digits) :]}"


def _decide_dtype(spec: FineTuneJobSpec, notes: Decisions) -> p.Dtype:
    if not spec.resources.gpu.count:
        fallback, reason = "float32", "CPUs are fastest and exact in float32"
    elif spec.method.type == "full":
        fallback, reason = "float32", "small updates of full fine-tuning vanish in bfloat16 weights"
    else:
        fallback, reason = "bfloat16", "the frozen base needs no more"
    dtype: p.Dtype = notes.choose("model.dtype", spec.model.dtype, fallback, reason)  # type: ignore[arg-type]
    return dtype


def _decide_output_directory(spec: FineTuneJobSpec, notes: Decisions, name: str, layout: Layout) -> str:
    destination = notes.choose(
        "output.destination", spec.output.destination, f"pvc://{name}-output", "a claim of the job's own"
    )
    source = parse_source(destination)
    if spec.output.destination is None:
        return layout.output
    if source.scheme == "file":
        return source.path.rstrip("/")
    return f"{layout.claim('output', source.name)}/{source.path}".rstrip("/")


def _decide_dataset(spec: FineTuneJobSpec, notes: Decisions, layout: Layout) -> p.DatasetPlan:
    validation = spec.dataset.validation
    return p.DatasetPlan(
        source=resolve_source(spec.dataset.source, "dataset", layout),
        split=notes.choose("dataset.split", spec.dataset.split, "train", "the usual name"),
        format=spec.dataset.format,
        validation_source=resolve_source(validation.source, "validation", layout) if validation and validation.source else None,
        validation_fraction=validation.fraction if validation else None,
        max_samples=spec.dataset.max_samples,
    )  # fmt: skip


def _decide_method(spec: FineTuneJobSpec, notes: Decisions, dtype: p.Dtype) -> p.MethodPlan:
    method = spec.method
    if method.type == "full":
        return p.MethodPlan(type="full")
    rank = notes.choose("method.rank", method.rank, 16, "enough for most tasks; raise it for much data")
    lora = p.LoraPlan(
        rank=rank,
        alpha=notes.choose("method.alpha", method.alpha, 2.0 * rank, "2 x rank: a scale of 2"),
        dropout=notes.choose("method.dropout", method.dropout, 0.05, "mild regularisation"),
        target_modules=tuple(notes.choose("method.targetModules", method.target_modules, ["all-linear"], "adapters on every linear come closest to full fine-tuning (QLoRA paper)")),
    )  # fmt: skip
    if method.type == "lora":
        return p.MethodPlan(type="lora", lora=lora)
    asked = method.quantization
    return p.MethodPlan(
        type="qlora",
        lora=lora,
        quantization=p.QuantizationPlan(
            bits=4,
            type=notes.choose("method.quantization.type", asked.type if asked else None, "nf4", "fits normally distributed weights (QLoRA paper)"),
            double_quant=notes.choose("method.quantization.doubleQuant", asked.double_quant if asked else None, True, "0.4 bit a parameter less (QLoRA paper)"),
            compute_dtype=notes.choose("method.quantization.computeDtype", asked.compute_dtype if asked else None, dtype, "as model.dtype"),
        ),
    )  # fmt: skip


def _decide_hyperparameters(spec: FineTuneJobSpec, notes: Decisions, precision: Any) -> p.HyperparameterPlan:
    training, gpus, method = spec.training, spec.resources.gpu.count, spec.method.type
    epochs = (
        None
        if training.max_steps
        else notes.choose(
            "training.epochs", training.epochs, 3.0, "a usual length where the loss of adapters levels off"
        )
    )
    batch, accumulation = _decide_batch(spec, notes)
    if method == "qlora" and gpus:
        optimizer, because = "paged_adamw_32bit", "pages out of GPU memory at peaks (QLoRA paper)"
    elif gpus:
        optimizer, because = "adamw_torch_fused", "one kernel for all parameters"
    else:
        optimizer, because = "adamw_torch", "AdamW"
    return p.HyperparameterPlan(
        epochs=epochs,
        max_steps=training.max_steps,
        learning_rate=notes.choose("training.learningRate", training.learning_rate, 2e-5 if method == "full" else 2e-4, "usual for full fine-tuning" if method == "full" else "adapters start from zero and bear ten times the rate of full fine-tuning"),
        scheduler=training.scheduler,
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        per_device_batch_size=batch,
        gradient_accumulation=accumulation,
        max_length=training.max_length,
        gradient_checkpointing=notes.choose("training.gradientCheckpointing", training.gradient_checkpointing, gpus > 0, "GPU memory is dearer than time" if gpus else "host memory is cheaper than time"),
        optimizer=notes.choose("training.optimizer", training.optimizer, optimizer, because),
        max_grad_norm=notes.choose("training.maxGradNorm", training.max_grad_norm, 0.3 if method == "qlora" else 1.0, "as in the QLoRA paper" if method == "qlora" else "the usual bound"),
        seed=training.seed,
        precision=precision,
        logging_steps=training.logging_steps,
    )  # fmt: skip


def _decide_batch(spec: FineTuneJobSpec, notes: Decisions) -> tuple[int, int]:
    """(rows a device takes at once, batches accumulated)."""
    training, devices = spec.training, max(1, spec.resources.gpu.count)
    usual = 1 if spec.method.type == "full" else 4
    if training.global_batch_size is not None:
        share = training.global_batch_size // devices
        fitting = max(size for size in range(1, usual + 1) if share % size == 0)
        batch = notes.choose(
            "training.perDeviceBatchSize",
            training.per_device_batch_size,
            fitting,
            f"divides the {share} rows that each device gets of globalBatchSize",
        )
        return batch, notes.choose("training.gradientAccumulation", None, share // batch, "what globalBatchSize needs")
    batch = notes.choose(
        "training.perDeviceBatchSize",
        training.per_device_batch_size,
        usual,
        "full fine-tuning needs the memory elsewhere" if usual == 1 else "fits most GPUs",
    )
    needed = math.ceil(GLOBAL_BATCH_SIZE / (batch * devices))
    accumulation = notes.choose(
        "training.gradientAccumulation",
        training.gradient_accumulation,
        needed,
        f"makes about {GLOBAL_BATCH_SIZE} rows an optimiser step",
    )
    notes.choose(
        "training.globalBatchSize",
        None,
        batch * devices * accumulation,
        "perDeviceBatchSize x GPUs x gradientAccumulation",
    )
    return batch, accumulation
