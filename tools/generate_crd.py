"""crds/finetune.dev_finetunejobs.yaml, from the pydantic models."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from finetune_api import names
from finetune_api.compatibility import RULES, Rule
from finetune_api.spec import FineTuneJobSpec, ObjectMeta, RunPolicy
from finetune_api.status import Status

TARGET = Path(__file__).parents[1] / "crds" / f"{names.GROUP}_{names.PLURAL}.yaml"
HEADER = "# Generated from operator/finetune_api; `make generate` writes it anew.\n"

Schema = dict[str, Any]

# name, type, path, description, 0: always shown, 1: with -o wide
COLUMNS = (
    ("Method", "string", ".spec.method.type", "What is trained", 0),
    ("Objective", "string", ".spec.objective.type", "What the training optimises", 0),
    ("Phase", "string", ".status.phase", "Where the job stands", 0),
    ("Progress", "integer", ".status.progress.percent", "Percent of the optimiser steps done", 0),
    ("Loss", "number", ".status.progress.loss", "Training loss", 0),
    ("GPUs", "integer", ".status.plan.gpus", "GPUs of the job, all nodes together", 0),
    ("Model", "string", ".spec.model.source", "The base model", 1),
    ("Tokens/s", "integer", ".status.progress.tokensPerSecond", "Input tokens per second, all devices", 1),
    ("ETA", "integer", ".status.progress.etaSeconds", "Seconds until the last step", 1),
    ("Market", "string", ".status.market", "Where the pods of a job with spot.enabled run", 1),
    ("GPU-h", "number", ".status.gpuHours", "GPUs times hours that the pods held them", 1),
    ("Cost", "number", ".status.cost", "Of these, by the platform's prices", 1),
    ("Node", "string", ".status.node", "Node of the newest pod", 1),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation", 0),
)

# What a running job may still change of its runPolicy, beside its budget; the rest of its spec is what the run was decided from.
MUTABLE = ("suspend", "ttlAfterFinished", "activeDeadline")


def build_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of FineTuneJob."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": [names.CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": description, "priority": priority}
                        for name, kind, path, description, priority in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": _build_root()},
                }
            ],
        },
    }


def _build_root() -> Schema:
    spec, status = build_schema(FineTuneJobSpec), build_schema(Status)
    for rule in RULES:
        if rule.cel is not None:
            _find_part(spec, rule.at).setdefault("x-kubernetes-validations", []).append(_build_rule(rule))
    conditions = status["properties"]["conditions"]
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    name = build_schema(ObjectMeta)["properties"]["name"]
    return {
        "type": "object",
        "description": "FineTuneJob turns a model and a dataset into a fine-tuned model.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{names.API_VERSION}."},
            "kind": {"type": "string", "description": f"{names.KIND}."},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": _build_immutability(),
    }


def build_schema(model: type[BaseModel]) -> Schema:
    """Structural schema of a model: references inlined, no alternatives, defaults that a reader of the object sees."""
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}))


def _convert(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    if "$ref" in schema:
        target = _convert(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
        return target | _convert({key: value for key, value in schema.items() if key != "$ref"}, definitions)
    if "anyOf" in schema:  # X | None: the API server drops nulls
        (inner,) = (each for each in schema["anyOf"] if each != {"type": "null"})
        return _convert(inner | {key: value for key, value in schema.items() if key != "anyOf"}, definitions)
    out: Schema = {
        key: schema[key]
        for key in ("type", "description", "format", "pattern", "x-kubernetes-int-or-string")
        if key in schema
    }
    if schema.get("default") is not None:
        # An empty object fills itself: the API server applies the defaults of its fields.
        out["default"] = {} if isinstance(schema["default"], dict) else schema["default"]
    for key in (
        "enum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minimum",
        "maximum",
    ):
        if key in schema:
            out[key] = schema[key]
    if "const" in schema:
        out["enum"] = [schema["const"]]
    for key in ("Minimum", "Maximum"):
        if f"exclusive{key}" in schema:
            out |= {key.lower(): schema[f"exclusive{key}"], f"exclusive{key}": True}
    if "items" in schema:
        out["items"] = _convert(schema["items"], definitions)
    if "properties" in schema:
        if schema.get("required"):
            out["required"] = schema["required"]
        out["properties"] = {name: _convert(each, definitions) for name, each in schema["properties"].items()}
    elif schema.get("type") == "object":
        ((pattern, values),) = schema.get("patternProperties", {None: schema.get("additionalProperties")}).items()
        out["additionalProperties"] = _convert(values, definitions)
        out["x-kubernetes-validations"] = [_build_key_rule(pattern, schema.get("propertyNames", {}))]
    return out


def _build_key_rule(pattern: str | None, bounds: Schema) -> Schema:
    """Structural schemas can't speak of a map's keys; CEL can."""
    checks = [f"size(key) <= {bounds['maxLength']}"] if "maxLength" in bounds else []
    if pattern is not None:
        checks.append(f"key.matches({_quote(pattern)})")
    return {
        "rule": f"self.all(key, {' && '.join(checks)})",
        "message": "a key is not valid; use letters, digits, '-', '_' and '.', after a DNS prefix and '/' if need be",
    }


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _find_part(schema: Schema, path: str) -> Schema:
    for step in filter(None, path.split(".")):
        schema = schema["properties"][step]
    return schema


def _build_rule(rule: Rule) -> Schema:
    built = {"rule": rule.cel, "message": f"{rule.message}; {rule.mend}"}
    if rule.field != rule.at:
        built["fieldPath"] = "." + rule.field.removeprefix(rule.at).removeprefix(".")
    return built


def _build_immutability() -> list[Schema]:
    started = "has(oldSelf.status) && has(oldSelf.status.workload)"
    sections = [
        field.alias or name
        for name, field in FineTuneJobSpec.model_fields.items()
        if name not in ("budget", "run_policy")
    ]
    paths = [f"spec.{name}" for name in sections]
    paths += [
        f"spec.runPolicy.{field.alias}" for field in RunPolicy.model_fields.values() if field.alias not in MUTABLE
    ]
    mend = f"make a new FineTuneJob; only budget and runPolicy.{', '.join(MUTABLE[:-1])} and {MUTABLE[-1]} may change"
    return [
        {
            "rule": f"!({started}) || self.{path} == oldSelf.{path}",
            "message": f"{path} can't change after the start; {mend}",
            "fieldPath": f".{path}",
        }
        for path in paths
    ]


class _Dumper(yaml.SafeDumper):
    """Without aliases: every part of the schema stands where it applies."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def generate() -> dict[Path, str]:
    """The generated files and their text."""
    text = yaml.dump(build_crd(), Dumper=_Dumper, sort_keys=False, width=140, allow_unicode=True)
    return {TARGET: HEADER + text}
