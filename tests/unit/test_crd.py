"""The generated CustomResourceDefinition, without an API server."""

from collections.abc import Iterator
from typing import Any

import yaml

from finetune_api.compatibility import RULES
from finetune_api.spec import FineTuneJobSpec
from tools import generate_crd

CRD = generate_crd.build_crd()
VERSION = CRD["spec"]["versions"][0]
ROOT = VERSION["schema"]["openAPIV3Schema"]


def _schemas(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from _schemas(each, f"{path}.{name}")
    for name, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if name in schema:
            yield from _schemas(schema[name], path + suffix)


SCHEMAS = dict(_schemas(ROOT, ""))


def test_file_is_what_the_models_say() -> None:
    assert {path: path.read_text() for path in generate_crd.generate()} == generate_crd.generate()
    assert yaml.safe_load(generate_crd.TARGET.read_text()) == CRD


def test_every_field_is_described() -> None:
    fields = {
        path: schema
        for path, schema in SCHEMAS.items()
        if path and path[-1] not in "]}" and path not in (".metadata", ".metadata.name")
    }
    assert len(fields) > 250
    assert [path for path, schema in fields.items() if not schema.get("description", "").endswith(".")] == []


def test_schema_is_structural() -> None:
    for path, schema in SCHEMAS.items():
        assert schema.keys().isdisjoint(
            {"$ref", "title", "anyOf", "allOf", "oneOf", "examples", "const", "propertyNames"}
        ), path
        assert ("type" in schema) != schema.get("x-kubernetes-int-or-string", False), path
        assert (schema.get("type") == "object") == ("properties" in schema or "additionalProperties" in schema), path


def test_only_model_and_dataset_are_required() -> None:
    assert SCHEMAS[".spec"]["required"] == ["model", "dataset"]
    assert {path for path, schema in SCHEMAS.items() if path.startswith(".spec") and "required" in schema and path.count(".") < 3} == {
        ".spec", ".spec.model", ".spec.dataset"
    }  # fmt: skip


def test_parents_of_defaults_have_defaults() -> None:
    """The API server fills the defaults of a section only when the section is there."""
    for name, field in FineTuneJobSpec.model_fields.items():
        schema = SCHEMAS[f".spec.{field.alias}"]
        assert ("default" in schema) == (name not in ("model", "dataset")), name
    assert SCHEMAS[".spec.resources.gpu"]["default"] == {}


def test_every_local_rule_is_in_the_schema() -> None:
    rules = {each["rule"]: each for schema in SCHEMAS.values() for each in schema.get("x-kubernetes-validations", [])}
    for rule in RULES:
        if rule.cel is not None:
            built = rules[rule.cel]
            assert built["message"] == f"{rule.message}; {rule.mend}"
            assert "spec." + rule.field == ".".join(filter(None, ("spec", rule.at))) + built.get("fieldPath", "")
    assert [rule.name for rule in RULES if rule.cel is None] == ["elastic-share", "selector-values"]


def test_only_the_budget_and_named_parts_of_the_run_policy_may_change() -> None:
    frozen = {each["fieldPath"] for each in ROOT["x-kubernetes-validations"]}
    sections = {f".spec.{field.alias}" for field in FineTuneJobSpec.model_fields.values()}
    assert frozen == sections - {".spec.budget", ".spec.runPolicy"} | {".spec.runPolicy.backoffLimit"}


def test_columns_read_fields_that_exist() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        if column["jsonPath"] != ".metadata.creationTimestamp":
            assert SCHEMAS[column["jsonPath"]]["type"] == column["type"]
