"""values.yaml, values.schema.json and README.md of the chart, from the model of its values."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from finetune_api import kubernetes
from finetune_operator.settings import Settings
from tools.chart.values import SET_BY_THE_CHART, Values

Schema = dict[str, Any]

WIDTH = 100


def _fields(model: BaseModel) -> Iterator[tuple[str, FieldInfo, Any]]:
    """(name in YAML, field, its value) of what a person may set."""
    for name, field in type(model).model_fields.items():
        if not (isinstance(model, Settings) and name in SET_BY_THE_CHART) and name != "global_":
            yield field.alias or name, field, getattr(model, name)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, exclude_none=True)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _is_section(value: Any) -> bool:
    """Kubernetes' own types are written as a whole: their fields are documented by Kubernetes."""
    return isinstance(value, BaseModel) and type(value).__module__ != kubernetes.__name__


def build_values(model: BaseModel) -> dict[str, Any]:
    """The values as Helm reads them."""
    values: dict[str, Any] = {}
    for name, _, value in _fields(model):
        if _is_section(value):
            values[name] = build_values(value)
        elif value is not None:
            values[name] = _plain(value)
    return values


def render_values() -> str:
    """values.yaml: every default with what it is for."""
    lines = [
        "# Generated from tools/chart/values.py and finetune_operator/settings.py; `make generate` writes it anew."
    ]
    for name, field, value in _fields(Values()):
        lines += ["", *_render_field(name, field, value, 0)]
    return "\n".join(lines) + "\n"


def _render_field(name: str, field: FieldInfo, value: Any, depth: int) -> list[str]:
    indent = "  " * depth
    width = WIDTH - len(indent) - 2
    lines = [f"{indent}# {line}" for line in textwrap.wrap(_describe(field), width, break_long_words=False)]
    if _is_section(value):
        lines.append(f"{indent}{name}:")
        for inner in _fields(value):
            lines += _render_field(*inner, depth + 1)
    elif value is None:
        lines.append(f"{indent}# {name}:")
    else:
        text = yaml.safe_dump({name: _plain(value)}, sort_keys=False, width=WIDTH, allow_unicode=True)
        lines += [indent + line for line in text.splitlines()]
    return lines


def _describe(field: FieldInfo) -> str:
    if field.description is None:
        raise ValueError(f"{field} has no docstring, which is its comment in values.yaml")
    return " ".join(field.description.split())


def render_schema() -> str:
    """values.schema.json: strict, so that Helm refuses a misspelt value before anything is installed."""
    raw = Values.model_json_schema(by_alias=True)
    schema = _inline(raw, raw["$defs"])
    for name in SET_BY_THE_CHART:
        del schema["properties"]["settings"]["properties"][_alias(name)]
    return (
        json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=2, ensure_ascii=False)
        + "\n"
    )


def _alias(name: str) -> str:
    return Settings.model_fields[name].alias or name


def _inline(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """The schema without references, titles and nulls: Helm drops a value that is null."""
    if "$ref" in schema:
        target = _inline(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
        return target | _inline({key: value for key, value in schema.items() if key != "$ref"}, definitions)
    if "anyOf" in schema:
        choices = [_inline(each, definitions) for each in schema["anyOf"] if each != {"type": "null"}]
        rest = _inline({key: value for key, value in schema.items() if key != "anyOf"}, definitions)
        return (choices[0] if len(choices) == 1 else {"anyOf": choices}) | rest
    out = {key: value for key, value in schema.items() if key not in ("title", "$defs")}
    if out.get("default", ...) is None:
        del out["default"]
    if out.pop("x-kubernetes-int-or-string", False):
        out["type"] = ["string", "integer"]
    if "properties" in out:
        out.pop("default", None)  # it is in the fields
        out["properties"] = {name: _inline(each, definitions) for name, each in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = _inline(out[key], definitions)
    if "patternProperties" in out:
        out["patternProperties"] = {k: _inline(each, definitions) for k, each in schema["patternProperties"].items()}
        out["additionalProperties"] = False
    # Helm's message about a bad name names another value. What is left are lengths, which the API server checks.
    if (keys := out.pop("propertyNames", {})).get("enum"):
        out |= {"properties": dict.fromkeys(keys["enum"], out["additionalProperties"]), "additionalProperties": False}
    return out


README = """\
<!-- Generated by tools/generate_chart.py; `make generate` writes it anew. -->
# finetune-operator

{description}. One `FineTuneJob` in, a fine-tuned model out.

Needs Kubernetes {kubernetes}. Chart {version}, operator {app_version}.

## Install

```sh
kubectl create namespace finetune-system
kubectl label namespace finetune-system pod-security.kubernetes.io/enforce=restricted
helm install finetune-operator helm/finetune-operator --namespace finetune-system \\
  --set image.repository=REGISTRY/finetune-operator --set settings.trainerImage=REGISTRY/finetune-trainer:{app_version}
helm test finetune-operator --namespace finetune-system
```

The operator's pods and the trainers' conform to Pod Security `restricted`. The chart makes no Secret and needs none.

## Upgrade and uninstall

`helm upgrade` upgrades the CustomResourceDefinition too, and running jobs go on: the new replica takes the Lease and
carries on from what is in the cluster. `helm uninstall` leaves the CustomResourceDefinition and every FineTuneJob
(`crds.keep`); installed again under the same name, the chart takes it over. A CustomResourceDefinition that was applied
by hand is taken over with `helm install --take-ownership`, or left alone with `crds.install=false`.

## In some namespaces only

With `watchNamespaces` the operator has Roles in these namespaces and no ClusterRole. Together with `crds.install=false`
and `rbac.userRoles=false` nothing of the chart is cluster-wide. The namespaces must exist.

## Users

Whoever has `view`, `edit` or `admin` in a namespace can see, run or clear FineTuneJobs there: the chart's ClusterRoles
are aggregated into these.

## Monitoring

`monitoring.*` adds a ServiceMonitor for the operator, a PodMonitor for the trainers, the alerts below and a Grafana
dashboard. The trainers' series carry the label `job` with the FineTuneJob's name, so the PodMonitor honours labels; a
Prometheus with `overrideHonorLabels` would rename it to `exported_job`, and dashboards and alerts would find nothing.
GPU utilisation comes from NVIDIA's DCGM exporter where it runs, else from the trainers themselves (NVML).

| Alert | Severity | Fires when |
|---|---|---|
{alerts}

## Values

| Value | Type | Default | Meaning |
|---|---|---|---|
{values}
"""


def render_readme(chart: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    """README.md.

    :param chart: Chart.yaml.
    :param groups: groups of the alert rules.
    """
    alerts = [rule for group in groups for rule in group["rules"]]
    return README.format(
        description=chart["description"],
        kubernetes=chart["kubeVersion"].removesuffix("-0"),
        version=chart["version"],
        app_version=chart["appVersion"],
        alerts="\n".join(
            f"| {rule['alert']} | {rule['labels']['severity']} | {rule['annotations']['description']} |"
            for rule in alerts
        ),
        values="\n".join(_render_rows(Values(), json.loads(render_schema()), "")),
    )


def _render_rows(model: BaseModel, schema: Schema, prefix: str) -> Iterator[str]:
    for name, field, value in _fields(model):
        part = schema["properties"][name]
        if _is_section(value):
            yield from _render_rows(value, part, f"{prefix}{name}.")
            continue
        default = "" if value is None else f"`{json.dumps(_plain(value), ensure_ascii=False)}`"
        yield f"| `{prefix}{name}` | {_render_type(part)} | {default} | {_describe(field)} |"


def _render_type(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "anyOf" in schema:
        return str(schema["anyOf"][0]["type"])
    kind = schema["type"]
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
