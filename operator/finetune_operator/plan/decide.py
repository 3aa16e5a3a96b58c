"""FineTuneJob -> TrainingPlan, and for each value why it is what it is. Pure: no clock, no environment, no API."""

import math
from dataclasses import dataclass
from typing import Any

from finetune_api import plan as p
from finetune_api.compatibility import CACHED, count_processes, find_elastic_share
from finetune_api.kubernetes import parse_quantity
from finetune_api.methods import METHODS
from finetune_api.objectives import OBJECTIVES
from finetune_api.spec import FineTuneJob, FineTuneJobSpec, Generation, Gguf
from finetune_operator.plan.checkpoint import decide_checkpoint
from finetune_operator.plan.decisions import Decision, Decisions
from finetune_operator.plan.layout import Layout, parse_source, resolve_source
from finetune_operator.plan.memory import fit_memory
from finetune_operator.plan.method import decide_method
from finetune_operator.plan.objective import decide_objective
from finetune_operator.plan.parallelism import build_engine, decide_parallelism
from finetune_operator.plan.price import find_price
from finetune_operator.settings import GpuPrice, Settings

UNBORN_UID = "00000000-0000-0000-0000-000000000000"
"""Stands for the uid of a FineTuneJob that no API server has seen yet."""

GLOBAL_BATCH_SIZE = 16


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
    price: GpuPrice | None
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
    method = decide_method(spec, notes, dtype, layout)
    parallelism = decide_parallelism(spec, notes, method)
    output, destination = _decide_output(spec, notes, job.metadata.name, layout)
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
        method=method,
        objective=decide_objective(spec, notes, layout),
        training=_decide_hyperparameters(spec, notes, precision, parallelism),
        evaluation=_decide_evaluation(spec),
        parallelism=parallelism,
        checkpoint=decide_checkpoint(spec, notes, destination or output, run_id, layout),
        output=p.OutputPlan(
            directory=output,
            destination=destination,
            artifacts=tuple(notes.choose("output.artifacts", spec.output.artifacts, ["adapter" if METHODS[spec.method.type].adapter else "merged"], "what the method trains")),
            verify=spec.output.verify,
            gguf_type=(spec.output.gguf or Gguf()).type,
            hub=p.HubPlan(repo=hub.repo, private=hub.private) if (hub := spec.output.push_to_hub) else None,
        ),
        observability=p.ObservabilityPlan(metrics_port=spec.observability.metrics_port, trackers=tuple(spec.observability.trackers or ())),
        cache_directory=layout.cache,
    )  # fmt: skip
    plan = build_engine(spec, fit_memory(spec, notes, build_engine(spec, plan, layout)), layout)
    if plan.model.dtype != dtype:
        notes.made.append(Decision("model.dtype", plan.model.dtype, "derived", "DeepSpeed trains float32 copies of it"))
    resources = _decide_resources(job, settings, notes)
    plan = plan.model_copy(update={"preflight": _decide_preflight(spec, resources)})
    return Decided(plan, resources, find_price(job, settings), tuple(notes.made))


def _decide_resources(job: FineTuneJob, settings: Settings, notes: Decisions) -> PodResources:
    """What the pod asks for: the person's figures, else the platform's, by GPU."""
    asked, gpus = job.spec.resources, job.spec.resources.gpu.count
    share = settings.gpu_defaults if gpus else settings.cpu_defaults
    times = max(1, gpus)
    because = f"the platform's share for {gpus} GPU(s)" if gpus else "the platform's share for a job without a GPU"
    volume = job.spec.output.volume
    return PodResources(
        cpu=notes.choose("resources.cpu", asked.cpu, multiply_quantity(share.cpu, times), because, "platform"),
        memory=notes.choose("resources.memory", asked.memory, multiply_quantity(share.memory, times), because, "platform"),
        shared_memory=notes.choose("resources.sharedMemory", asked.shared_memory, share.shared_memory, because, "platform"),
        output_size=notes.choose("output.volume.size", volume.size if volume else None, settings.output.size, "the platform's size for output claims", "platform"),
    )  # fmt: skip


def _decide_preflight(spec: FineTuneJobSpec, resources: PodResources) -> p.PreflightPlan | None:
    asked = spec.preflight
    if not asked.enabled:
        return None
    return p.PreflightPlan(
        gpus=spec.resources.gpu.count,
        shared_memory_bytes=int(parse_quantity(resources.shared_memory)),
        rdma=spec.network.rdma is not None,
        free_disk_bytes=int(parse_quantity(asked.min_free_disk)) if asked.min_free_disk else None,
        bus_bandwidth=float(parse_quantity(asked.min_bus_bandwidth)) if asked.min_bus_bandwidth else None,
    )


def multiply_quantity(quantity: str, factor: int) -> str:
    """A quantity of Kubernetes as many times."""
    digits = quantity.rstrip("mkKMGTPEi")
    number = float(digits) * factor
    return f"{int(number) if number.is_integer() else number}{quantity[len(digits) :]}"


def _decide_dtype(spec: FineTuneJobSpec, notes: Decisions) -> p.Dtype:
    if not spec.resources.gpu.count:
        fallback, reason = "float32", "CPUs are fastest and exact in float32"
    elif not METHODS[spec.method.type].adapter:
        fallback, reason = "float32", "small updates vanish in bfloat16 weights"
    else:
        fallback, reason = "bfloat16", "the frozen base needs no more"
    dtype: p.Dtype = notes.choose("model.dtype", spec.model.dtype, fallback, reason)  # type: ignore[arg-type]
    return dtype


def _decide_output(spec: FineTuneJobSpec, notes: Decisions, name: str, layout: Layout) -> tuple[str, str | None]:
    """(folder that the trainer writes to, address in S3 that it brings that to)"""
    destination = notes.choose(
        "output.destination", spec.output.destination, f"pvc://{name}-output", "a claim of the job's own"
    )
    source = parse_source(destination)
    if source.scheme == "s3":
        return layout.output, destination.rstrip("/")
    if spec.output.destination is None:
        return layout.output, None
    if source.scheme == "file":
        return source.path.rstrip("/"), None
    return f"{layout.claim('output', source.name)}/{source.path}".rstrip("/"), None


def _decide_dataset(spec: FineTuneJobSpec, notes: Decisions, layout: Layout) -> p.DatasetPlan:
    validation = spec.dataset.validation
    return p.DatasetPlan(
        source=resolve_source(spec.dataset.source, "dataset", layout),
        split=notes.choose("dataset.split", spec.dataset.split, "train", "the usual name"),
        format=spec.dataset.format,
        validation_source=resolve_source(validation.source, "validation", layout) if validation and validation.source else None,
        validation_fraction=validation.fraction if validation else None,
        max_samples=spec.dataset.max_samples,
        streaming=spec.dataset.streaming,
        cleaning=p.CleaningPlan(**spec.dataset.cleaning.model_dump()),
        mixtures=tuple(
            p.MixturePlan(
                source=resolve_source(mixture.source, f"mixture-{index}", layout),
                split=mixture.split or "train",
                format=mixture.format,
                weight=mixture.weight,
            )
            for index, mixture in enumerate(spec.dataset.mixtures or ())
        ),
    )  # fmt: skip


def _decide_evaluation(spec: FineTuneJobSpec) -> p.EvaluationPlan:
    asked = spec.evaluation
    return p.EvaluationPlan(
        every_steps=asked.every_steps,
        samples=tuple(asked.samples or ()),
        metrics=tuple(asked.metrics or ()),
        metric_rows=asked.metric_rows,
        harness=p.HarnessPlan(**asked.harness.model_dump()) if asked.harness else None,
        gates=tuple(p.GatePlan(**gate.model_dump()) for gate in asked.gates or ()),
    )


def _decide_hyperparameters(
    spec: FineTuneJobSpec, notes: Decisions, precision: Any, parallelism: p.ParallelismPlan
) -> p.HyperparameterPlan:
    training, method = spec.training, spec.method.type
    epochs = (
        None
        if training.max_steps
        else notes.choose(
            "training.epochs", training.epochs, 3.0, "a usual length where the loss of adapters levels off"
        )
    )
    batch, accumulation = _decide_batch(spec, notes)
    rate, rate_reason = decide_learning_rate(spec)
    optimizer, because = _decide_optimizer(spec, parallelism)
    return p.HyperparameterPlan(
        epochs=epochs,
        max_steps=training.max_steps,
        learning_rate=notes.choose("training.learningRate", training.learning_rate, rate, rate_reason),
        scheduler=training.scheduler,
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        per_device_batch_size=batch,
        gradient_accumulation=accumulation,
        max_length=notes.choose("training.maxLength", training.max_length, 2048, "holds most conversations"),
        packing=training.packing,
        padding_free=training.padding_free,
        gradient_checkpointing=notes.choose("training.gradientCheckpointing", training.gradient_checkpointing, *_decide_checkpointing(spec)),
        activation_offload=notes.choose("training.activationOffload", training.activation_offload, False, "costs time"),
        fused_kernels=notes.choose("training.fusedKernels", training.fused_kernels, False, "not every trainer image has them"),
        neftune_alpha=training.neftune_alpha,
        early_stopping=p.EarlyStoppingPlan(**training.early_stopping.model_dump()) if training.early_stopping else None,
        batch_search=notes.choose("training.autoFindBatchSize", training.auto_find_batch_size, False, "costs a few steps at the start"),
        data_loader_workers=notes.choose("training.dataLoaderWorkers", training.data_loader_workers, 0, "encoded rows are quick to collate"),
        optimizer=notes.choose("training.optimizer", training.optimizer, optimizer, because),
        max_grad_norm=notes.choose("training.maxGradNorm", training.max_grad_norm, 0.3 if method == "qlora" else 1.0, "as in the QLoRA paper" if method == "qlora" else "the usual bound"),
        seed=training.seed,
        precision=precision,
        logging_steps=training.logging_steps,
    )  # fmt: skip


def _decide_checkpointing(spec: FineTuneJobSpec) -> tuple[bool, str]:
    """(whether activations are recomputed, why)"""
    if not spec.resources.gpu.count:
        return False, "host memory is cheaper than time"
    if spec.method.type in CACHED:
        return False, "virtual keys and values are a cache, which recomputing does without"
    return True, "GPU memory is dearer than time"


def decide_learning_rate(spec: FineTuneJobSpec) -> tuple[float, str]:
    """(peak, why): the method's for supervised fine-tuning, times the objective's share."""
    method, objective = METHODS[spec.method.type], OBJECTIVES[spec.objective.type]
    rate = float(f"{method.learning_rate * objective.learning_rate_factor:.3g}")
    if objective.learning_rate_factor == 1:
        return rate, f"usual for {spec.method.type}"
    return (
        rate,
        f"{method.learning_rate:g} is usual for {spec.method.type}, {spec.objective.type} takes {objective.learning_rate_factor:g} of it",
    )


def _decide_optimizer(spec: FineTuneJobSpec, parallelism: p.ParallelismPlan) -> tuple[str, str]:
    """(optimiser, why)"""
    if parallelism.device == "cpu":
        return "adamw_torch", "AdamW"
    if spec.parallelism.offload.optimizer != "none":
        return "adamw_torch", "works where its states are offloaded to"
    if spec.method.type == "qlora" and parallelism.strategy != "fsdp":
        return "paged_adamw_32bit", "pages out of GPU memory at peaks (QLoRA paper)"
    return "adamw_torch_fused", "one kernel for all parameters"


def _decide_batch(spec: FineTuneJobSpec, notes: Decisions) -> tuple[int, int]:
    """(rows a device takes at once, batches accumulated)."""
    training, devices = spec.training, count_processes(spec)
    usual = 4 if METHODS[spec.method.type].adapter or spec.objective.type == "kto" else 1
    if training.global_batch_size is not None:
        share = training.global_batch_size // devices
        fitting = max(size for size in range(1, usual + 1) if share % (size * find_elastic_share(spec)) == 0)
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
        "a whole model's training needs the memory elsewhere" if usual == 1 else "fits most GPUs",
    )
    needed, because = (
        math.ceil(GLOBAL_BATCH_SIZE / (batch * devices)),
        f"makes about {GLOBAL_BATCH_SIZE} rows an optimiser step",
    )
    whole, share = 1, find_elastic_share(spec)
    if OBJECTIVES[spec.objective.type].generates:
        completions = (spec.objective.generation or Generation()).completions
        whole = completions // math.gcd(completions, batch * devices)
        needed, because = math.ceil(needed / whole) * whole, f"the {completions} answers to a prompt stay in one step"
    if needed % share:
        both = math.lcm(whole, share)
        needed, because = math.ceil(needed / both) * both, "is dealt out evenly to every number of nodes"
    accumulation = notes.choose("training.gradientAccumulation", training.gradient_accumulation, needed, because)
    notes.choose(
        "training.globalBatchSize",
        None,
        batch * devices * accumulation,
        "perDeviceBatchSize x processes x gradientAccumulation",
    )
    return batch, accumulation
