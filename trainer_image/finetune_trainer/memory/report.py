"""What to change after the memory ran out."""

import json
from pathlib import Path

from finetune_api.memory import ModelShape, estimate, find_shape, format_bytes, list_mends, parse_shape
from finetune_api.plan import TrainingPlan

_SHOWN = 3


def describe_out_of_memory(plan: TrainingPlan) -> str:
    """Which fields to change from what to what, with what each saves by the memory model, most first."""
    shape = read_shape(plan)
    where = "GPU" if plan.parallelism.device == "cuda" else "host"
    mends = list_mends(shape, plan)[:_SHOWN]
    need = "" if shape is None else f", a process needs about {format_bytes(estimate(shape, plan).total)}"
    if not mends:
        return f"the {where} ran out of memory{need}: use a smaller model or more memory"
    advice = "; or ".join(map(str, mends))
    unknown = "" if shape is not None else f" (what each saves is unknown for model.source {plan.model.source.uri})"
    return f"the {where} ran out of memory{need}; set {advice}{unknown}"


def read_shape(plan: TrainingPlan) -> ModelShape | None:
    """The model's shape by its config.json where that lies on this machine, else by its name."""
    file = _find_config(plan)
    shape = None
    if file is not None and file.exists():
        shape = parse_shape(json.loads(file.read_text()))
    return shape or find_shape(plan.model.source.uri)


def _find_config(plan: TrainingPlan) -> Path | None:
    source = plan.model.source
    if source.kind == "file":
        return Path(source.location) / "config.json"
    if source.kind == "hf":
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(source.location, "config.json", revision=plan.model.revision)
        return Path(found) if isinstance(found, str) else None
    return None
