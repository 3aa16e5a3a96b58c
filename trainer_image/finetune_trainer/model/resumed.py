"""Training that starts from an adapter that was trained before."""

import copy
from collections.abc import Iterator
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.model.source import locate_source

_KIND = ("peft_type", "task_type", "use_dora", "use_rslora", "prefix_projection")
"""Settings in which adapters of another method, or for another kind of model, differ."""
_FIELDS = {
    "r": "method.rank",
    "lora_alpha": "method.alpha",
    "num_virtual_tokens": "method.virtualTokens",
    "size": "method.bottleneckSize",
    "placement": "method.placement",
}


def attach_trained(plan: TrainingPlan, model: Any, config: Any) -> Any:
    """``model`` with the adapter of ``method.resume_adapter``, to be trained on. ``config``: what the plan asks for.

    Raises: InvalidInputError when it is of another kind or size, or was trained on another model.
    """
    from peft import PeftConfig, get_peft_model

    source = plan.method.resume_adapter
    assert source is not None
    location = locate_source(source, plan, "method.resumeAdapter")
    try:
        found = PeftConfig.from_pretrained(location)
    except ValueError as error:
        raise InvalidInputError(f"method.resumeAdapter {source.uri}: no PEFT adapter is there: {error}") from error
    for complaint in _list_misfits(config, found, model):
        raise InvalidInputError(f"method.resumeAdapter {source.uri} {complaint}")
    attached = get_peft_model(model, config)
    try:
        attached.load_adapter(location, "default", is_trainable=True)
    except (ValueError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InvalidInputError(
            f"method.resumeAdapter {source.uri} doesn't fit {plan.model.source.uri}: {lines[min(1, len(lines) - 1)]}"
        ) from error
    return attached


def _list_misfits(wanted: Any, found: Any, model: Any) -> Iterator[str]:
    for name in _KIND:
        ours, theirs = (_value(getattr(config, name, None)) for config in (wanted, found))
        if ours != theirs:
            yield f"is of another kind ({name} {theirs}, this plan's is {ours}): take the method it was trained with"
    for name in ("target_modules", "feedforward_modules"):
        # None: PEFT's choice for the architecture, which the adapter has in writing.
        if getattr(wanted, name, "") is None:
            setattr(wanted, name, getattr(found, name))
    for name, field in _FIELDS.items():
        ours, theirs = getattr(wanted, name, None), getattr(found, name, None)
        if ours != theirs:
            yield f"has {theirs} where {field} is {ours}: set {field}: {theirs}"
    ours, theirs = _list_targets(wanted, model), _list_targets(found, model)
    if ours != theirs:
        last = sorted({name.rpartition(".")[2] for name in theirs})
        yield f"is for other modules than method.targetModules: set it to {last}"


def _list_targets(config: Any, model: Any) -> set[str]:
    """The modules of the model that an adapter of this config changes."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists

    if getattr(config, "target_modules", None) is None:
        return set()
    config = _maybe_include_all_linear_layers(copy.copy(config), model)
    return {name for name, _ in model.named_modules() if name and check_target_module_exists(config, name)}


def _value(setting: Any) -> Any:
    return getattr(setting, "value", setting)
