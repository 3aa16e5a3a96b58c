"""JSON schemas for kubeconform from what the real API server publishes, so that they are of its very version."""

import json
import re
from pathlib import Path
from typing import Any

from tests.cluster.harness.api import Api
from tests.cluster.harness.waiting import wait_until

LOCATION = "{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json"
"""kubeconform's name of a file; kinds are in lower case there, and the core group is called v1."""

_CUSTOM = {
    "apis/monitoring.coreos.com/v1",
    "apis/kubeflow.org/v1",
    "apis/scheduling.volcano.sh/v1beta1",
    "apis/scheduling.x-k8s.io/v1alpha1",
}
PREFIX = "#/components/schemas/"

Schema = dict[str, Any]


def write_schemas(api: Api, folder: Path) -> Path:
    """One file a kind."""
    # A custom kind is published a moment after it is served.
    paths = wait_until(lambda: _find_paths(api), "the OpenAPI documents of the custom kinds", 120)
    for path in paths:
        schemas = api.get(path)["components"].get("schemas", {})  # /version has none
        definitions = {name: _tighten(schema) for name, schema in schemas.items()}
        for name, schema in definitions.items():
            for kind in schema.get("x-kubernetes-group-version-kind", []):
                file = LOCATION.replace("{{.ResourceKind}}", kind["kind"].lower())
                file = file.replace("{{.Group}}", kind["group"] or kind["version"]).replace(
                    "{{.ResourceAPIVersion}}", kind["version"]
                )
                used = {each: definitions[each] for each in _find_used(name, definitions, set())}
                (folder / file).write_text(json.dumps({"$ref": PREFIX + name, "components": {"schemas": used}}))
    return folder


def _find_paths(api: Api) -> list[str]:
    published = api.get("/openapi/v3")["paths"]
    return [f"/openapi/v3/{path}" for path in published] if published.keys() >= _CUSTOM else []


def _find_used(name: str, definitions: dict[str, Schema], found: set[str]) -> set[str]:
    """The definition and all that it refers to."""
    found.add(name)
    for each in re.findall(f'"{PREFIX}([^"]+)"', json.dumps(definitions[name])):
        if each not in found:
            _find_used(each, definitions, found)
    return found


def _tighten(schema: Any) -> Any:
    """The schema with unknown fields refused wherever fields are listed."""
    if isinstance(schema, list):
        return [_tighten(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _tighten(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        out.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return out
