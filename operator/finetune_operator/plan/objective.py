"""What the training optimises."""

from typing import Any

from finetune_api import plan as p
from finetune_api.model_base import ApiModel
from finetune_api.objectives import OBJECTIVES
from finetune_api.spec import FineTuneJobSpec, Generation, Ppo
from finetune_operator.plan.decisions import Decisions
from finetune_operator.plan.layout import Layout, resolve_source


def decide_objective(spec: FineTuneJobSpec, notes: Decisions, layout: Layout) -> p.ObjectivePlan:
    """Only what the objective takes is told of; the rest stays at the plan's defaults."""
    asked, objective = spec.objective, OBJECTIVES[spec.objective.type]
    settings: dict[str, Any] = {}
    if "beta" in objective.settings:
        settings["beta"] = notes.choose("objective.beta", asked.beta, objective.beta, f"usual for {asked.type}")
    if "losses" in objective.settings:
        settings["losses"] = tuple(notes.choose("objective.losses", asked.losses, ["sigmoid"], "the DPO paper's"))
        settings["loss_weights"] = tuple(asked.loss_weights or ())
        settings["label_smoothing"] = notes.choose(
            "objective.labelSmoothing", asked.label_smoothing, 0.0, "the preferences are taken to be right"
        )
    if "precomputeReference" in objective.settings:
        settings["precompute_reference"] = notes.choose(
            "objective.precomputeReference",
            asked.precompute_reference,
            False,
            "costs a pass over the data; worth it where the reference is a second model in memory",
        )
    if "desirableWeight" in objective.settings:
        settings["desirable_weight"] = notes.choose(
            "objective.desirableWeight", asked.desirable_weight, 1.0, "liked and disliked answers count alike"
        )
        settings["undesirable_weight"] = notes.choose(
            "objective.undesirableWeight", asked.undesirable_weight, 1.0, "liked and disliked answers count alike"
        )
    if objective.generates:
        settings["generation"] = p.GenerationPlan(
            **_choose_all("objective.generation", asked.generation, Generation(), notes)
        )
    if asked.type == "ppo":
        settings["ppo"] = p.PpoPlan(**_choose_all("objective.ppo", asked.ppo, Ppo(), notes))
    return p.ObjectivePlan(
        type=asked.type,
        response_only=_decide_response_only(spec, notes),
        reference_model=resolve_source(asked.reference_model, "reference", layout) if asked.reference_model else None,
        reward_model=resolve_source(asked.reward_model, "reward", layout) if asked.reward_model else None,
        reward_functions=tuple(asked.reward_functions or ()),
        **settings,
    )  # fmt: skip


def _choose_all(path: str, asked: ApiModel | None, defaults: ApiModel, notes: Decisions) -> dict[str, Any]:
    """The values of a part that the person may leave out as a whole."""
    return {
        name: notes.choose(
            f"{path}.{field.alias}",
            getattr(asked, name) if asked is not None and name in asked.model_fields_set else None,
            getattr(defaults, name),
            field.description or "",
            "default",
        )
        for name, field in type(defaults).model_fields.items()
    }


def _decide_response_only(spec: FineTuneJobSpec, notes: Decisions) -> bool:
    if spec.objective.type != "sft":
        return False
    is_text = spec.dataset.format == "text"
    reason = "rows of text have no prompt" if is_text else "learning to answer, not to ask"
    return notes.choose("objective.responseOnly", spec.objective.response_only, not is_text, reason)
