"""The plan fitted to the GPU's memory, each change told."""

from finetune_api import plan as p
from finetune_api.memory import find_shape
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plan.decisions import Decision, Decisions
from finetune_operator.plan.memory_levels import MemoryOptimization, apply_levels


def fit_memory(spec: FineTuneJobSpec, notes: Decisions, plan: p.TrainingPlan) -> p.TrainingPlan:
    """The plan after the levels of ``memory.optimization``. What the person wrote stays as it is."""
    asked = spec.memory.optimization
    optimization: MemoryOptimization = "auto" if asked is None else asked or "none"  # type: ignore[assignment]
    given = {decision.path for decision in notes.made if decision.origin == "you"}
    given |= _list_kept(spec)
    leveled = apply_levels(
        plan, optimization, frozenset(given), find_shape(spec.model.source), spec.resources.gpu.memory_gib,
        kernels=bool(spec.training.fused_kernels),
    )  # fmt: skip
    notes.made.append(Decision("memory.optimization", asked, "derived" if asked is None else "you", leveled.reason))
    for step in leveled.steps:
        for change in step.changes:
            notes.made.append(
                Decision(change.field, change.after, "derived", f"memory level {step.level}: {step.reason}")
            )
    return leveled.plan


def _list_kept(spec: FineTuneJobSpec) -> set[str]:
    """Fields with a default of the API, whose writer can't be told: only a level that was asked for changes them."""
    kept = {"model.attention"}
    if spec.memory.optimization is None or spec.method.type != "lora":
        kept.add("method.type")
    if (spec.parallelism.offload.optimizer, spec.parallelism.offload.parameters) != ("none", "none"):
        kept.add("parallelism.strategy")
    if spec.dataset.streaming:
        kept.add("training.maxLength")
    if spec.parallelism.offload.optimizer != "none":
        kept.add("training.optimizer")
    return kept
