"""The reward functions, on answers that a person would judge the same."""

import json
from typing import Any

import pytest

from finetune_trainer.objective.rewards import FUNCTIONS, _spread_fields

_CASES: list[tuple[str, dict[str, Any], list[float | None]]] = [
    (
        "exact-match",
        {"completions": ["Paris", " Paris\n", "paris", "x"], "reference": ["Paris"] * 3 + [""]},
        [1, 1, 0, None],
    ),
    ("reference-contained", {"completions": ["It is PARIS.", "Rome"], "reference": ["Paris"] * 2}, [1, 0]),
    (
        "number-match",
        {
            "completions": ["2 + 2 = 4", "so 1,234.0", "it is -3", "none", "5"],
            "reference": ["#### 4", "1234", "3", "1", "no number"],
        },
        [1, 1, 0, 0, 0],
    ),
    ("word-overlap", {"completions": ["the cat sat", "a dog", ""], "reference": ["The cat"] * 3}, [0.8, 0, 0]),
    ("regex", {"completions": ["42\n", "x", "y"], "pattern": [r"\d+", r"\d+", None]}, [1, 0, None]),
    ("regex", {"completions": ["42"]}, [None]),
    (
        "think-format",
        {"completions": ["<think>a\nb</think>\n4", "<think></think>4", "4", "<think>a</think> "]},
        [1, 0, 0, 0],
    ),
    ("json-valid", {"completions": ['{"a": [1]}', "[]", "3", "{a}"]}, [1, 1, 0, 0]),
    ("length-penalty", {"completions": ["", ""], "completion_ids": [[], [1, 2]]}, [0, -0.002]),
    ("repetition-penalty", {"completions": ["a b c a b c", "a b c d", "a"]}, [-0.25, 0, 0]),
]


@pytest.mark.parametrize(("name", "columns", "expected"), _CASES)
def test_rewards(name: str, columns: dict[str, Any], expected: list[float | None]) -> None:
    rewards = FUNCTIONS[name](prompts=["?"] * len(expected), trainer_state=None, **columns)
    assert rewards == [None if each is None else pytest.approx(each) for each in expected]


def test_every_function_is_tried() -> None:
    assert {name for name, _, _ in _CASES} == set(FUNCTIONS)


def test_fields_of_the_rows_are_keywords() -> None:
    """As TRL hands on a dataset's columns; a row without the field has None there."""

    def told(completions: list[str], level: list[int | None], **_: Any) -> list[float | None]:
        return [None if each is None else float(each) for each in level]

    fields = [json.dumps({"level": 2}), "{}"]
    assert _spread_fields(told)(completions=["a", "b"], prompts=["", ""], fields=fields) == [2.0, None]
