"""What of a released CustomResourceDefinition a new one would break: objects that were valid have to stay so.

Only the schema is compared. What rules in CEL refuse is known to an API server alone: tests/cluster/test_crd.py asks one.

After the API server's rules for structural schemas and the Kubernetes API conventions on changes:
https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api_changes.md
"""

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

DECIDED = {"training.maxLength": 2048, "method.quantization.type": "nf4"}
"""Fields of the spec whose default left the schema: the plan decides it by other fields, alone it is what it was."""

# Bound -> whether a larger value is the stricter one.
_BOUNDS = {
    "minimum": True, "minLength": True, "minItems": True, "minProperties": True,
    "maximum": False, "maxLength": False, "maxItems": False, "maxProperties": False,
}  # fmt: skip
_FIXED = ("type", "pattern", "format", "default", "oneOf", "anyOf", "allOf", "not")
_TEXT = ("pattern", "maxLength")
_OPENING = ("nullable", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")


def find_incompatibilities(released: Schema, current: Schema) -> list[str]:
    """Each with the path of the field; none when every object that was valid still is, and means the same."""
    return [
        f"{path or 'spec'}: {what}"
        for path, what in _compare_definitions(released["spec"], current["spec"])
        if what != f"default was {DECIDED.get(path.partition('.spec.')[2])}, is None"
    ]


def _compare_definitions(old: Schema, new: Schema) -> Iterator[tuple[str, str]]:
    for field in ("group", "scope"):
        if old[field] != new[field]:
            yield field, f"was {old[field]}, is {new[field]}"
    for field in ("kind", "plural", "singular", "shortNames", "categories"):
        lost = set(_listed(old["names"].get(field))) - set(_listed(new["names"].get(field)))
        if lost:
            yield f"names.{field}", f"{', '.join(sorted(lost))} is gone"
    served = {version["name"]: version for version in new["versions"] if version["served"]}
    for version in old["versions"]:
        name = version["name"]
        if name not in served:
            yield name, "is not served any more"
            continue
        if lost := set(version.get("subresources", ())) - set(served[name].get("subresources", ())):
            yield name, f"has no subresource {', '.join(sorted(lost))} any more"
        yield from _compare(version["schema"]["openAPIV3Schema"], served[name]["schema"]["openAPIV3Schema"], name)


def _compare(old: Schema, new: Schema, path: str) -> Iterator[tuple[str, str]]:
    if _takes_choices(old, new):
        old = old | {key: new[key] for key in _TEXT if key in new}
    for key in _FIXED:
        if key == "pattern" and _takes_more(old.get(key), new.get(key)):
            continue
        if old.get(key) != new.get(key) and (key in new or key in ("type", "default")):
            yield path, f"{key} was {old.get(key)}, is {new.get(key)}"
    for key in _OPENING:
        if old.get(key) and not new.get(key):
            yield path, f"{key} is gone"
    for key, larger_is_stricter in _BOUNDS.items():
        if key in new and (key not in old or ((new[key] > old[key]) == larger_is_stricter and new[key] != old[key])):
            yield path, f"{key} was {old.get(key, 'absent')}, is {new[key]}"
    if "enum" in new and (lost := [value for value in old.get("enum", ["any value"]) if value not in new["enum"]]):
        yield path, f"{', '.join(map(str, lost))} is not allowed any more"
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"{path}.{name}", "is required now"
    for name, schema in old.get("properties", {}).items():
        if name in new.get("properties", {}):
            yield from _compare(schema, new["properties"][name], f"{path}.{name}")
        else:
            yield f"{path}.{name}", "is gone"
    for key, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            yield from _compare(old[key], new[key], path + suffix)
        elif old.get(key) != new.get(key):
            yield path, f"{key} was {old.get(key)}, is {new.get(key)}"


def _takes_more(old: str | None, new: str | None) -> bool:
    """Whether a pattern ``^(one|two)$`` has got alternatives behind those that it had."""
    return bool(old and new and old.endswith(")$") and new.endswith(")$") and new.startswith(f"{old[:-2]}|"))


def _takes_choices(old: Schema, new: Schema) -> bool:
    """Whether a choice has become a text that may be each of them, and more."""
    pattern, most = new.get("pattern", ""), new.get("maxLength", float("inf"))
    choices = old.get("enum", ())
    return (
        bool(choices) and "enum" not in new and all(re.search(pattern, each) and len(each) <= most for each in choices)
    )


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []
