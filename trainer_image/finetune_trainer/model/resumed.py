"""Training that starts from an adapter that was trained before."""

import copy
from collections.abc import Iterator
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.package_file import find_package_file

_KIND = ("peft_type", "task_type", "use_dora", "use_rslora", "prefix_projection")
"""Settings in which adapters of another method, or for another kind of model, differ."""
_FIELDS = {
    "r": "method.rank",
    "lora_alpha": "method.alpha",
    "num_virtual_tokens": "method.virtualTokens",
    "size": "method.bottleneckSize",
    "placement": "method.placement",
    "target_modules": "method.targetModules",
}


def attach_trained(plan: TrainingPlan, model: Any, config: Any) -> Any:
    """``model`` with the adapter of ``method.resume_adapter``, to be trained on. ``config``: what the plan asks for.

    Raises: InvalidInputError when it is of another kind or size, or was trained on another model.
    """
    from peft import PeftConfig, PeftModel

    source = plan.method.resume_adapter
    assert source is not None
    location = str(find_package_file(source)) if source.kind == "package" else source.location
    try:
        found = PeftConfig.from_pretrained(location)
    except ValueError as error:
        raise InvalidInputError(f"method.resumeAdapter {source.uri}: no PEFT adapter is there: {error}") from error
    for complaint in _list_misfits(config, found, model):
        raise InvalidInputError(f"method.resumeAdapter {source.uri} {complaint}")
    try:
        return PeftModel.from_pretrained(model, location, is_trainable=True)
    except (ValueError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise InvalidInputError(
            f"method.resumeAdapter {source.uri} doesn't fit {plan.model.source.uri}: {lines[min(1, len(lines) - 1)]}"
        ) from error


def _list_misfits(wanted: Any, found: Any, model: Any) -> Iterator[str]:
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    for name in _KIND:
        ours, theirs = getattr(wanted, name, None), getattr(found, name, None)
        if ours != theirs:
            yield f"is of another kind ({name} {theirs}, this plan's is {ours}): take the method it was trained with"
    if getattr(wanted, "target_modules", None) == "all-linear":
        wanted = _maybe_include_all_linear_layers(copy.copy(wanted), model)
    for name, field in _FIELDS.items():
        ours, theirs = getattr(wanted, name, None), getattr(found, name, None)
        # None: PEFT's choice for the architecture, which the adapter has in writing.
        if ours is not None and ours != theirs:
            yield f"has {_show(theirs)} where {field} is {_show(ours)}: set {field}: {_show(theirs)}"


def _show(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
