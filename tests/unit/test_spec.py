"""Parsing and refusing FineTuneJobs: the corpus of invalid ones, and properties that hold for all."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.compatibility import RULES
from finetune_api.errors import InvalidFineTuneJob, Problem
from finetune_api.spec import FineTuneJob
from finetune_operator.spec.documents import Document, InvalidYaml, load_documents
from finetune_operator.spec.parse import HIDDEN, parse_finetunejob
from tests import strategies
from tests.invalid import Invalid, load_corpus

MINIMAL: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "minimal"},
    "spec": {"model": {"source": "hf://org/model"}, "dataset": {"source": "pvc://data/train.jsonl"}},
}
EXAMPLES = sorted((Path(__file__).parents[2] / "manifests" / "examples").glob("*.yaml"))


def _problems(document: Any) -> list[Problem]:
    try:
        parse_finetunejob(document)
    except InvalidFineTuneJob as error:
        return error.problems
    return []


def _with(**spec: Any) -> dict[str, Any]:
    document = copy.deepcopy(MINIMAL)
    document["spec"] |= spec
    return document


def _read(document: Document, path: str) -> Any:
    """The value at the path of a problem; None where there is none."""
    value = document.content
    for key, index, name in re.findall(r'\["([^"]+)"\]|\[(\d+)\]|([^.\[\]]+)', path):
        try:
            value = value[int(index) if index else key or name]
        except KeyError:
            return None
    return value


@pytest.mark.parametrize("case", load_corpus(), ids=lambda case: case.path.stem)
def test_refuses_with_field_value_and_mend(case: Invalid) -> None:
    (document,) = load_documents(case.text)
    (problem,) = _problems(document.content)
    assert problem.field == case.field
    assert case.message in problem.message
    assert problem.mend
    if problem.message not in {rule.message for rule in RULES}:  # rules choose what they show
        shown = str(problem.value)  # as text: NaN equals nothing
        assert shown in (str(_read(document, case.field)), HIDDEN) or f'["{shown}"]' in case.field  # a map's bad key
    assert str(problem).startswith(f"{case.field}: ")
    assert document.find_line(problem.field) > case.text.count("\n# ") + 1


def test_corpus_is_large_and_covers_every_rule() -> None:
    corpus = load_corpus()
    assert len(corpus) >= 70
    told = {problem.message for case in corpus for problem in _problems(case.document)}
    assert [rule.name for rule in RULES if rule.message not in told] == []


def test_corpus_covers_every_kind_of_shape_error() -> None:
    """pydantic's error types that a FineTuneJob can meet."""
    kinds = set()
    for case in load_corpus():
        text = json.dumps(case.document)
        try:
            FineTuneJob.model_validate_json(text, strict=True, by_alias=True, by_name=False)
        except ValueError as error:
            kinds |= {each["type"] for each in error.errors()}  # type: ignore[attr-defined]
    assert kinds >= {
        "extra_forbidden", "missing", "literal_error", "string_pattern_mismatch", "string_type", "int_type", "float_type",
        "bool_type", "list_type", "model_type", "greater_than", "greater_than_equal", "less_than", "less_than_equal",
        "string_too_short", "string_too_long", "too_short", "too_long",
    }  # fmt: skip


def test_minimal_job_is_valid_and_defaulted() -> None:
    job = parse_finetunejob(MINIMAL)
    assert (job.spec.method.type, job.spec.objective.type, job.spec.resources.gpu.count) == ("lora", "sft", 1)
    assert job.metadata.namespace == "default"


def test_tells_all_problems_at_once() -> None:
    document = _with(method={"rank": 0, "alfa": 1}, training={"epochs": "3"})
    del document["spec"]["dataset"]
    assert {problem.field for problem in _problems(document)} == {
        "spec.dataset", "spec.method.rank", "spec.method.alfa", "spec.training.epochs"
    }  # fmt: skip


def test_tells_all_broken_rules_at_once() -> None:
    document = _with(method={"type": "full", "rank": 8, "alpha": 8}, training={"epochs": 1, "maxSteps": 1})
    assert [problem.field for problem in _problems(document)] == [
        "spec.training.maxSteps",
        "spec.method.rank",
        "spec.method.alpha",
    ]


@pytest.mark.parametrize("document", [None, [], "text", 3, True])
def test_refuses_what_is_no_mapping(document: Any) -> None:
    (problem,) = _problems(document)
    assert "not an object" in problem.message


def test_reads_as_the_api_server_does() -> None:
    assert parse_finetunejob(_with(method=None)).spec.method.type == "lora"
    assert parse_finetunejob(_with(method={"rank": 8.0})).spec.method.rank == 8
    assert parse_finetunejob(_with(resources={"cpu": 4, "memory": "8Gi"})).spec.resources.cpu == "4"
    assert _problems(_with(methods=None))[0].field == "spec.methods"
    assert _problems(_with(training={"maxSteps": float("inf")}))[0].field == "spec.training.maxSteps"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("rnak", "rank"), ("Rank", "rank"), ("target_modules", "targetModules"), ("quantisation", "quantization")],
)
def test_unknown_field_suggests_its_neighbour(written: str, meant: str) -> None:
    (problem,) = _problems(_with(method={written: 1}))
    assert problem.mend == f"did you mean {meant}?"


@pytest.mark.parametrize(
    "spec",
    [
        {"podTemplate": {"env": [{"name": "API_KEY", "value": 987654321}]}},
        {"podTemplate": {"env": [{"name": "X", "valeu": "987654321"}]}},
        {"podTemplate": {"env": ["KEY=987654321"]}},
        {"podTemplate": {"env": {"HF_TOKEN": "987654321"}}},
        {"podTemplate": {"env": [{"name": "HF_TOKEN=987654321"}]}},
        {"podTemplate": {"env": [{"name": "HF_TOKEN", "value": "987654321"}]}},
        {
            "podTemplate": {
                "env": [
                    {"name": "MODE", "value": "987654321", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
                ]
            }
        },
        {"model": {"source": "hf://org/model", "tokenSecretRef": "987654321"}},
        {"model": {"source": "hf://org/model", "hfToken": 987654321}},
        {"model": {"source": "hf://org/model", "auth": "hf_987654321abcdefgh"}},
        {
            "observability": {
                "trackers": ["wandb"],
                "wandbSecretRef": {"name": "wandb", "key": "k", "apiKey": "987654321"},
            }
        },
    ],
)
def test_secrets_are_never_echoed(spec: dict[str, Any]) -> None:
    problems = _problems(_with(**spec))
    assert problems
    assert not any("987654321" in str(problem) for problem in problems)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.jobs())
def test_shapes_round_trip(document: dict[str, Any]) -> None:
    """Whatever has the right shape is refused by rules only; what is valid is the same job when written and read again."""
    try:
        job = parse_finetunejob(document)
    except InvalidFineTuneJob:
        assert {problem.message for problem in _problems(document)} <= {rule.message for rule in RULES}
        return
    assert parse_finetunejob(job.model_dump(by_alias=True, mode="json")) == job


def _objects(value: Any) -> list[dict[str, Any]]:
    """Every object in a document whose fields the models name (maps of labels have free keys)."""
    if isinstance(value, list):
        return [found for item in value for found in _objects(item)]
    if not isinstance(value, dict):
        return []
    below = [found for key, item in value.items() if key not in FREE_KEYS for found in _objects(item)]
    return [value, *below]


FREE_KEYS = ("metadata", "labels", "annotations", "nodeSelector", "matchLabels", "volumeAttributes", "nccl")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.jobs(), st.data())
def test_unknown_fields_are_refused_anywhere(document: dict[str, Any], data: st.DataObject) -> None:
    data.draw(st.sampled_from(_objects(document)))["surprise"] = data.draw(st.sampled_from([None, 1, "x", {}, []]))
    assert any(
        problem.field.split(".")[-1] == "surprise" and "unknown" in problem.message for problem in _problems(document)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)), st.data())  # fmt: skip
def test_never_crashes(junk: Any, data: st.DataObject) -> None:
    document = data.draw(strategies.jobs())
    place = data.draw(st.sampled_from(_objects(document)))
    place[data.draw(st.sampled_from(sorted(place) or ["spec"]))] = junk
    for problem in _problems(document):
        assert problem.message and problem.mend


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    jobs = [each.content for each in load_documents(path.read_text()) if each.content.get("kind") == "FineTuneJob"]
    assert jobs
    for job in jobs:
        parse_finetunejob(job)


@pytest.mark.parametrize("section", ["method", "training", "podTemplate"])
def test_empty_section_counts_as_absent(section: str) -> None:
    (document,) = load_documents(yaml.safe_dump(MINIMAL) + f"  {section}:\n")
    assert document.content["spec"][section] is None
    assert parse_finetunejob(document.content) == parse_finetunejob(MINIMAL)


def test_yaml_is_read_as_kubectl_reads_it() -> None:
    (document,) = load_documents(
        "a: 2e-4\nb: 1:30\nc: 2026-01-01\nd: 0777\ne: yes\nf: 1_000\ng: .5\nh: ~\ni: '3'\nj: 0x1f\nk: 1e3\n"
    )
    assert document.content == {
        "a": 2e-4, "b": "1:30", "c": "2026-01-01", "d": 511, "e": True, "f": 1000, "g": 0.5, "h": None, "i": "3", "j": 31, "k": 1000.0
    }  # fmt: skip


def test_documents_know_their_lines() -> None:
    first, second = load_documents("# a comment\na:\n  b:\n  - x: 1\n  - y: 2\n---\n---\nc: {d: 1,\n  e/f: 2}\n")
    assert (first.line, first.find_line("a.b[1].y"), first.find_line("a.b[1].z.q"), first.find_line("nowhere")) == (
        2,
        5,
        5,
        2,
    )
    assert (second.line, second.find_line("c.d"), second.find_line('c["e/f"]')) == (8, 8, 9)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the key a stands twice"),
        ("a: [1\nb: 2\n", 2, "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "cannot start any token"),
        ("a: !!binary aGk=\n", 1, "the tag !!binary is not allowed"),
        ("a: !!python/object:os.system x\n", 1, "is not allowed"),
        ("a: &x\n  b: *x\n", 1, "an alias that contains itself"),
        ("? [a]\n: b\n", 1, "a key must be a plain word"),
        ("a: 1\nb: \x01\n", 2, "is not allowed"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)), 1, "after the aliases are unfolded"),
    ],
)  # fmt: skip
def test_broken_yaml_is_refused_with_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(InvalidYaml, match="line") as caught:
        load_documents(text)
    assert problem in caught.value.problem
    assert caught.value.line == line


def test_broken_yaml_shows_no_secret() -> None:
    with pytest.raises(InvalidYaml) as caught:
        load_documents("env:\n- name: TOKEN\n  value: hf_987654321: x\n")
    assert "987654321" not in str(caught.value)
