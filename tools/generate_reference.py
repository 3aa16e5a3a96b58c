"""docs/reference/finetunejob.md: every field, every rule, and which field of the manifests each field drives.

The last is measured: a job is rendered with and without the field, and the two sets of objects are compared.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from finetune_api import kubernetes, names
from finetune_api.compatibility import REWARDED, RULES
from finetune_api.errors import InvalidFineTuneJob
from finetune_api.methods import METHODS
from finetune_api.objectives import OBJECTIVES
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Status
from finetune_api.strategies import STRATEGIES
from finetune_operator.manifests.build import build_manifests
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.fields import Shape, build_example, parse_shape, read_bounds
from finetune_operator.spec.parse import parse_finetunejob
from finetune_operator.spec.wording import format_value

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "finetunejob.md"

Object = dict[str, Any]

_REWARDED: Object = {"rewardFunctions": ["exact-match"]}

# What some fields need beside them to be allowed, or to matter.
COMPANIONS: tuple[Object, ...] = (
    {},
    {"dataset": {"validation": {"fraction": 0.1}}},
    *({"method": {"type": method}} for method in METHODS),
    *({"objective": {"type": each} | (_REWARDED if each in REWARDED else {})} for each in OBJECTIVES),
    {"objective": {"type": "dpo", "losses": ["hinge"]}},
    {"objective": {"type": "grpo", "rewardFunctions": ["number-match"]}},
    {"training": {"maxSteps": 10}},
    {"resources": {"gpu": {"count": 2}}},
    {"output": {"artifacts": ["gguf"]}},
    {"evaluation": {"harness": {"tasks": ["arc_challenge"]}}},
    {"evaluation": {"gates": [{"metric": "bleu", "op": ">", "value": 1}]}},
    {"evaluation": {"gates": [{"metric": "bleu", "op": ">", "versusBase": 1}]}},
    {"dataset": {"mixtures": [{"source": "hf://org/more", "weight": 1}]}},
    {"output": {"pushToHub": {"repo": "org/name", "tokenSecretRef": {"name": "other", "key": "other"}}}},
    {"model": {"source": "hf://Qwen/Qwen3-8B"}},
    *({"resources": {"gpu": {"count": 2}}, "parallelism": {"strategy": each}} for each in STRATEGIES),
    {"model": {"cache": {"size": "10Gi"}}},
    {"parallelism": {"nodes": 2}},
    {"parallelism": {"nodes": 2}, "resources": {"placement": {"topologyKey": "example.com/rack"}}},
    {"parallelism": {"nodes": 4, "elastic": {"minNodes": 2}}},
    {"resources": {"gang": {"scheduler": "volcano"}}},
    {"resources": {"gang": {"scheduler": "scheduler-plugins"}}},
    {"spot": {"enabled": True, "gracePeriod": "25s"}},
    {"network": {"rdma": {"count": 8}}},
    {"preflight": {"enabled": True}, "resources": {"gpu": {"count": 2}}},
    {"resources": {"gpu": {"count": 0}}},
    {"resources": {"memory": "64Gi"}},
    {"observability": {"trackers": ["wandb"], "wandbSecretRef": {"name": "other", "key": "other"}}},
    {"podTemplate": {"volumes": [{"name": "archive", "emptyDir": {}}]}},
    {"podTemplate": {"volumes": [{"name": "models", "emptyDir": {}}], "volumeMounts": [{"name": "models", "mountPath": "/models"}]}},
)  # fmt: skip

# What drives the operator, and no field of a manifest.
BEHAVIOUR = {
    "budget.maxGpuHours": "the workload's suspend once `status.gpuHours` is there",
    "budget.maxCost": "the workload's suspend once `status.cost` is there",
    "budget.onExceeded": "phase Suspended, or the job's end: reason BudgetExceeded",
    "spot.maxPreemptions": "the job's end: reason TooManyPreemptions",
    "spot.fallback.afterPreemptions": "`status.market`, and with it the pod's nodes",
    "spot.fallback.afterWait": "`status.market`, and with it the pod's nodes",
    "spot.fallback.backAfter": "`status.market`, and with it the pod's nodes",
}

# Short names of the places that many fields drive.
_PLACES = (
    ("Job.spec.template.spec.containers[trainer]", "container"),
    ("Job.spec.template.spec", "pod"),
    ("Job.spec.template", "template"),
)


def generate() -> dict[Path, str]:
    """The generated files and their text."""
    return {TARGET: "\n".join(_write_page()) + "\n"}


def list_fields(model: type[BaseModel] = FineTuneJobSpec, above: str = "") -> Iterator[tuple[str, FieldInfo, Shape]]:
    """(path, field, shape) of every field below a model; what core/v1 defines is not taken apart."""
    for field in model.model_fields.values():
        shape = parse_shape(field.annotation, field.metadata)
        path = f"{above}{field.alias}"
        if shape.model is not None and shape.model.__module__ != kubernetes.__name__:
            yield from list_fields(shape.model, f"{path}.")
        elif (
            shape.kind == "list"
            and (item := parse_shape(shape.item)).model
            and item.model.__module__ != kubernetes.__name__
        ):
            yield from list_fields(item.model, f"{path}[].")
        else:
            yield path, field, shape


def find_driven(path: str, field: FieldInfo, shape: Shape) -> list[str]:
    """Paths of the manifests that change with a field of the spec."""
    driven: dict[str, None] = {}
    for value in _list_values(field, shape):
        for companion in COMPANIONS:
            before, after = _render(companion), _render(_merge(companion, _nest(path, value)))
            if before is not None and after is not None:
                changed = list(_compare(before, after, ""))
                driven |= dict.fromkeys(changed)
                if changed:
                    break
    return sorted(map(_shorten, driven), key=lambda each: (each.startswith("plan.json"), each))


def _list_values(field: FieldInfo, shape: Shape) -> list[Any]:
    """Values that fit, such that at least one differs from the default."""
    if shape.kind == "boolean":
        return [True, False]
    if shape.kind == "enum":
        return list(shape.choices)
    values = list(field.examples or [build_example(shape)])
    if shape.kind == "integer":
        bounds = read_bounds(shape.metadata)
        values += [bounds["ge"], values[0] + 1]
    elif shape.kind == "number":
        values.append(values[0] / 2)
    return values


def _nest(path: str, value: Any) -> Object:
    """A list of objects (``[]``) has one entry here, a tuple to be merged with the one that is there."""
    head, _, rest = path.partition(".")
    below = _nest(rest, value) if rest else value
    return {head.removesuffix("[]"): (below,) if head.endswith("[]") else below}


def _merge(one: Object, other: Object) -> Object:
    merged = copy.deepcopy(one)
    for key, value in other.items():
        if isinstance(value, tuple):
            merged[key] = [_merge(old, new) for old, new in zip(merged.get(key, [{}]), value, strict=True)]
        elif isinstance(merged.get(key), dict) and isinstance(value, dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


_rendered: dict[str, Object | None] = {}


def _render(spec: Object) -> Object | None:
    """The manifests by kind, the plan taken apart; None when the job is not allowed."""
    key = json.dumps(spec, sort_keys=True)
    if key not in _rendered:
        _rendered[key] = _build(spec)
    return copy.deepcopy(_rendered[key])


def _build(spec: Object) -> Object | None:
    base = {"model": {"source": "hf://org/model"}, "dataset": {"source": "hf://org/rows"}}
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "job"},
        "spec": _merge(base, spec),
    }
    try:
        job = parse_finetunejob(document)
    except InvalidFineTuneJob:
        return None
    layout, settings = ContainerLayout(), Settings()
    found: Object = {}
    for manifest in build_manifests(job, decide_plan(job, settings, layout), settings, layout):
        kind = manifest["kind"]
        if kind == "PersistentVolumeClaim":
            kind += f"[{manifest['metadata']['name'].removeprefix('job-')}]"
        found[kind] = manifest
    found["plan.json"] = json.loads(found.pop("ConfigMap")["data"][names.PLAN_KEY])
    for kind in names.WORKLOADS:
        if kind in found:
            del found[kind]["metadata"]["annotations"][names.ANNOTATION_PLAN_HASH]  # follows from the plan
    return found


def _compare(one: Any, other: Any, path: str) -> Iterator[str]:
    one, other = _by_name(one), _by_name(other)
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            step = key if key.startswith("[") else f"{':' if path == 'plan.json' else '.'}{key}" if path else key
            if key in one and key in other:
                yield from _compare(one[key], other[key], path + step)
            else:
                yield path + step
    elif one != other:
        yield path


def _by_name(value: Any) -> Any:
    """Lists of named things, such as containers and volumes, by their names."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        return {f"[{each['name']}]": each for each in value}
    return value


def _shorten(path: str) -> str:
    for long, short in _PLACES:
        if path.startswith(long):
            return short + path.removeprefix(long)
    return path


def _write_page() -> Iterator[str]:
    yield "<!-- Generated from operator/finetune_api; `make generate` writes it anew. -->"
    yield "# FineTuneJob"
    yield ""
    yield f"`apiVersion: {names.API_VERSION}`, `kind: {names.KIND}`, short name `{names.SHORT_NAME}`. Only `spec.model.source` and"
    yield "`spec.dataset.source` are required. `finetune render --explain -f FILE` shows what becomes of all the others, and why."
    yield ""
    yield "## Fields of the spec"
    for section in FineTuneJobSpec.model_fields.values():
        shape = parse_shape(section.annotation, section.metadata)
        assert shape.model is not None
        yield from ("", f"### {section.alias}", "", section.description or "", "")
        yield from _write_fields(f"{section.alias}.", shape.model, examples=True)
    yield from ("", "## Rules between fields", "")
    yield "The API server refuses what breaks one of them, unless it can't know: those the operator refuses."
    yield from ("", "| Field | Refused when | Mend | By |", "|---|---|---|---|")
    for rule in RULES:
        by = "API server" if rule.cel else "operator"
        yield f"| `{rule.field or 'resources.affinity'}` | {_cell(rule.message)} | {_cell(rule.mend)} | {by} |"
    yield from ("", "## What each field drives", "")
    yield "Measured by rendering a job with and without the field. `container` is the trainer's container, `pod` the Job's"
    yield "`spec.template.spec`, `template` its `spec.template`, and `plan.json:` the plan in the job's ConfigMap. Whatever changes what is"
    yield f"trained also changes the Job's annotation `{names.ANNOTATION_PLAN_HASH}`."
    yield from ("", "| Field of the spec | Fields of the manifests |", "|---|---|")
    for path, field, shape in list_fields():
        driven = ", ".join(f"`{each}`" for each in find_driven(path, field, shape))
        yield f"| `{path}` | {driven or BEHAVIOUR.get(path, 'nothing yet: it has one choice')} |"
    yield from ("", "## Status", "", "Written by the operator only.", "")
    yield from _write_fields("", Status, examples=False)


def _write_fields(above: str, model: type[BaseModel], *, examples: bool) -> Iterator[str]:
    last = " Example |" if examples else ""
    yield f"| Field | Type | Default | Description |{last}"
    yield "|---|---|---|---|" + ("---|" if examples else "")
    for path, field, shape in list_fields(model, above):
        default = "" if field.default in (None, PydanticUndefined) else f"`{format_value(field.default)}`"
        if field.is_required() and examples:
            default = "required"
        row = f"| `{path}` | {_describe_type(shape)} | {default} | {_cell(field.description or '')} |"
        if examples:
            row += f" `{_cell(format_value(build_example(shape, field)))}` |"
        yield row


def _describe_type(shape: Shape) -> str:
    bounds = read_bounds(shape.metadata)
    match shape.kind:
        case "enum":
            return ", ".join(f"`{format_value(choice)}`" for choice in shape.choices)
        case "list":
            kind = f"list of {_describe_type(parse_shape(shape.item))}"
        case "object":
            assert shape.model is not None
            kind = f"core/v1 {shape.model.__name__}" if shape.model.__module__ == kubernetes.__name__ else "object"
        case "map":
            kind = "map of strings"
        case _:
            kind = _PATTERN_NAMES.get(bounds.get("pattern", ""), shape.kind)
    return kind + _describe_bounds(shape.kind, bounds)


_PATTERN_NAMES = {kubernetes.DURATION_PATTERN: "duration"}


def _describe_bounds(kind: str, bounds: Object) -> str:
    if kind in ("integer", "number"):
        low = f"> {bounds['gt']}" if "gt" in bounds else f">= {bounds['ge']}" if "ge" in bounds else ""
        high = (
            f"< {bounds['lt']}"
            if "lt" in bounds
            else f"<= {bounds['le']:_}".replace("_", " ")
            if "le" in bounds
            else ""
        )
        return "".join(f", {each}" for each in (low, high) if each)
    unit = "entries" if kind in ("list", "map") else "characters"
    return f", at most {bounds['max_length']} {unit}" if "max_length" in bounds and kind != "quantity" else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
