"""The CustomResourceDefinition takes every object that a released one took."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob
from tools.crd_compatibility import DECIDED, find_incompatibilities
from tools.generate_crd import build_crd

RELEASED = sorted(Path(__file__).parents[2].glob("crds/released/*.yaml"))
Schema = dict[str, Any]


def spec_of(crd: Schema) -> Schema:
    fields: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return fields


def field(crd: Schema, *path: str) -> Schema:
    schema = spec_of(crd)
    for name in path:
        schema = schema["properties"][name]
    return schema


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_what_was_valid_stays_valid(file: Path) -> None:
    assert find_incompatibilities(yaml.safe_load(file.read_text()), build_crd()) == []


def test_defaults_that_left_the_schema_are_decided_the_same() -> None:
    document = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "old"},
        "spec": {
            "model": {"source": "hf://org/model"},
            "dataset": {"source": "hf://org/rows"},
            "method": {"type": "qlora"},
        },
    }
    decided = decide_plan(parse_finetunejob(document), Settings(), ContainerLayout())
    assert {each.path: each.value for each in decided.decisions}.items() >= DECIDED.items()


def test_there_is_a_released_definition() -> None:
    assert RELEASED


BREAKS: dict[str, Callable[[Schema], object]] = {
    "v1alpha1.spec.method.rank: is gone": lambda crd: field(crd, "method")["properties"].pop("rank"),
    "v1alpha1.spec.method.rank: type was integer, is string": lambda crd: field(crd, "method", "rank").update(type="string"),
    "v1alpha1.spec.method.rank: maximum was": lambda crd: field(crd, "method", "rank").update(maximum=2),
    "v1alpha1.spec.method.type: qlora is not allowed any more": lambda crd: field(crd, "method", "type")["enum"].remove("qlora"),
    "v1alpha1.spec.method.type: pattern was": lambda crd: (
        field(crd, "method", "type").pop("enum"),
        field(crd, "method", "type").update(pattern="^(lora|full)$"),
    ),
    "v1alpha1.spec.model.source: pattern was": lambda crd: field(crd, "model", "source").update(pattern="^(s3://.+)$"),
    "v1alpha1.spec.training: is required now": lambda crd: spec_of(crd)["required"].append("training"),
    "v1alpha1: is not served any more": lambda crd: crd["spec"]["versions"][0].update(served=False),
    "v1alpha1: has no subresource status any more": lambda crd: crd["spec"]["versions"][0].update(subresources={}),
    "names.shortNames: ftj is gone": lambda crd: crd["spec"]["names"].update(shortNames=[]),
    "scope: was Namespaced, is Cluster": lambda crd: crd["spec"].update(scope="Cluster"),
}  # fmt: skip


@pytest.mark.parametrize("told", BREAKS)
def test_what_breaks_objects_is_told(told: str) -> None:
    broken = copy.deepcopy(build_crd())
    BREAKS[told](broken)
    (found,) = find_incompatibilities(build_crd(), broken)
    assert found.startswith(told)


EXTENDS: list[Callable[[Schema], object]] = [
    lambda crd: field(crd, "method")["properties"].update(init={"type": "string", "enum": ["default", "pissa"]}),
    lambda crd: field(crd, "method", "type")["enum"].append("dora"),
    lambda crd: field(crd, "method", "rank").update(maximum=10**9),
    lambda crd: (
        field(crd, "method", "type").pop("enum"),
        field(crd, "method", "type").update(pattern="^[a-z0-9-]+$", maxLength=20),
    ),
    lambda crd: field(crd, "model", "source").update(
        pattern=field(crd, "model", "source")["pattern"][:-2] + "|s3://.+)$"
    ),
    lambda crd: crd["spec"]["versions"].append(crd["spec"]["versions"][0] | {"name": "v1beta1", "storage": False}),
]


@pytest.mark.parametrize("extend", EXTENDS)
def test_additions_are_no_break(extend: Callable[[Schema], object]) -> None:
    extended = copy.deepcopy(build_crd())
    extend(extended)
    assert extended != build_crd()
    assert find_incompatibilities(build_crd(), extended) == []
