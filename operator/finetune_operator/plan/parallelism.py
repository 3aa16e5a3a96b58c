"""How processes share the training: the strategy, and its engine's configuration."""

from finetune_api import plan as p
from finetune_api.compatibility import count_local_processes, count_processes, find_strategy
from finetune_api.matrix import find_exclusion
from finetune_api.memory import find_shape
from finetune_api.presets import choose_strategy
from finetune_api.spec import FineTuneJobSpec
from finetune_api.strategies import StrategyType
from finetune_operator.plan.decisions import Decisions
from finetune_operator.plan.engines import build_deepspeed_config, build_fsdp_config
from finetune_operator.plan.layout import Layout

_HALVES = {"bf16": "bfloat16", "fp16": "float16"}


def decide_parallelism(spec: FineTuneJobSpec, notes: Decisions, method: p.MethodPlan) -> p.ParallelismPlan:
    """Without the engine's configuration: memory levels may change the strategy yet."""
    fallback, reason = decide_strategy(spec, method)
    return p.ParallelismPlan(
        strategy=notes.choose("parallelism.strategy", spec.parallelism.strategy, fallback, reason),
        device="cuda" if spec.resources.gpu.count else "cpu",
        nodes=spec.parallelism.nodes,
        elastic=p.ElasticPlan(**spec.parallelism.elastic.model_dump()) if spec.parallelism.elastic else None,
        processes_per_node=notes.choose("parallelism.processes", spec.parallelism.processes, count_local_processes(spec), "one a GPU" if spec.resources.gpu.count else "one process has the whole CPU"),
    )  # fmt: skip


def decide_strategy(spec: FineTuneJobSpec, method: p.MethodPlan) -> tuple[StrategyType, str]:
    """(strategy, why) for a job that names none."""
    gpu, objective, implied = spec.resources.gpu, spec.objective.type, find_strategy(spec)
    if implied is not None:
        because = "shares out what parallelism.offload puts elsewhere"
        return implied, "its checkpoints fit any number of nodes" if spec.parallelism.elastic else because
    if count_processes(spec) == 1:
        return "single", "there is one process"
    if not gpu.count and find_exclusion(method.type, objective, "ddp") is None:
        return "ddp", "without GPUs there is no memory to be spared for"
    return choose_strategy(find_shape(spec.model.source), method, count_processes(spec), gpu.memory_gib, objective)


def build_engine(spec: FineTuneJobSpec, plan: p.TrainingPlan, layout: Layout) -> p.TrainingPlan:
    """The plan with the configuration of its strategy's engine, and the weights in the dtype that it keeps them in."""
    parallelism, offload, model = plan.parallelism, spec.parallelism.offload, plan.model
    deepspeed = fsdp = None
    if parallelism.strategy in ("zero1", "zero2", "zero3"):
        deepspeed = build_deepspeed_config(
            parallelism.strategy, plan.training.precision, offload.optimizer, offload.parameters, layout.scratch
        )
        if spec.model.dtype is None and plan.training.precision in _HALVES:
            # DeepSpeed trains float32 copies of half-precision weights.
            model = model.model_copy(update={"dtype": _HALVES[plan.training.precision]})
    elif parallelism.strategy == "fsdp":
        fsdp = build_fsdp_config(spec.parallelism.sharding or "full", offload.parameters == "cpu", parallelism.nodes)
    changed = parallelism.model_copy(update={"deepspeed": deepspeed, "fsdp": fsdp})
    return plan.model_copy(update={"parallelism": changed, "model": model})
