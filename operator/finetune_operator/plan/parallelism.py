"""How processes share the training: the strategy, and its engine's configuration."""

from typing import Any

from finetune_api import plan as p
from finetune_api.compatibility import count_processes
from finetune_api.matrix import find_exclusion
from finetune_api.methods import METHODS
from finetune_api.spec import FineTuneJobSpec
from finetune_api.strategies import StrategyType
from finetune_operator.plan.decisions import Decisions
from finetune_operator.plan.engines import build_deepspeed_config, build_fsdp_config
from finetune_operator.plan.layout import Layout


def decide_parallelism(spec: FineTuneJobSpec, notes: Decisions, precision: Any, layout: Layout) -> p.ParallelismPlan:
    """``precision``: of the plan's training."""
    fallback, reason = decide_strategy(spec)
    strategy = notes.choose("parallelism.strategy", spec.parallelism.strategy, fallback, reason)
    offload = spec.parallelism.offload
    deepspeed = fsdp = None
    if strategy in ("zero1", "zero2", "zero3"):
        deepspeed = build_deepspeed_config(strategy, precision, offload.optimizer, offload.parameters, layout.scratch)
    elif strategy == "fsdp":
        sharding: Any = notes.choose(
            "parallelism.sharding", spec.parallelism.sharding, "full", "least memory on each GPU"
        )
        fsdp = build_fsdp_config(sharding, offload.parameters == "cpu")
    return p.ParallelismPlan(
        strategy=strategy,
        device="cuda" if spec.resources.gpu.count else "cpu",
        processes_per_node=count_processes(spec),
        deepspeed=deepspeed,
        fsdp=fsdp,
    )


def decide_strategy(spec: FineTuneJobSpec) -> tuple[StrategyType, str]:
    """(strategy, why) for a job that names none: the one with the least traffic that is likely to fit the memory."""
    if count_processes(spec) == 1:
        return "single", "one process"
    order, reason = _order_strategies(spec)
    method, objective = spec.method.type, spec.objective.type
    refused = {each: find_exclusion(method, objective, each) for each in order}
    chosen = next(each for each in order if refused[each] is None)
    if (exclusion := refused[order[0]]) is not None:
        reason = f"{order[0]} is refused here: {exclusion.reason}"
    return chosen, reason


def _order_strategies(spec: FineTuneJobSpec) -> tuple[tuple[StrategyType, ...], str]:
    """Best first, and why it is the best."""
    offload = spec.parallelism.offload
    if "nvme" in (offload.optimizer, offload.parameters):
        return ("zero3",), "the one that offloads to NVMe"
    if offload.parameters != "none":
        return ("zero3", "fsdp"), "shares out the parameters that are offloaded"
    if offload.optimizer != "none":
        return ("zero2", "zero1", "zero3"), "shares out the optimiser states that are offloaded"
    if METHODS[spec.method.type].adapter:
        return ("ddp", "zero2", "fsdp", "zero3", "zero1"), "only an adapter's gradients have to travel"
    if not spec.resources.gpu.count:
        return ("ddp", "zero2", "fsdp", "zero3", "zero1"), "the processes share one host's memory anyway"
    return (
        "fsdp",
        "zero3",
        "zero2",
        "zero1",
        "ddp",
    ), "weights, gradients and optimiser states of a whole model fit when shared out"
