"""Every format: what it makes of a good row, and what it says of a broken one."""

from typing import Any

import pytest

from finetune_trainer.data.formats import (
    NEEDED,
    Continuation,
    Conversation,
    RowProblemError,
    Text,
    detect_format,
    parse_row,
)
from finetune_trainer.errors import InvalidInputError

QUESTION = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["messages", "id"], "chatml"),
        (["conversations"], "sharegpt"),
        (["prompt", "completion"], "prompt-completion"),
        (["instruction", "input", "output"], "alpaca"),
        (["instruction", "output", "text"], "alpaca"),
        (["text"], "text"),
    ],
)
def test_auto_goes_by_the_columns(columns: list[str], expected: str) -> None:
    assert detect_format("auto", columns, "file:///d") == expected


def test_unknown_columns_are_listed_with_what_each_format_needs() -> None:
    with pytest.raises(InvalidInputError) as caught:
        detect_format("auto", ["question", "answer"], "file:///d")
    assert "file:///d has the columns answer, question" in str(caught.value)
    assert all(f"{name} needs {', '.join(needed)}" in str(caught.value) for name, needed in NEEDED.items())


def test_a_named_format_needs_its_columns() -> None:
    with pytest.raises(InvalidInputError, match="alpaca needs instruction, output"):
        detect_format("alpaca", ["messages"], "file:///d")


@pytest.mark.parametrize(
    ("format_name", "fields", "expected"),
    [
        ("chatml", {"messages": [QUESTION, ANSWER]}, Conversation([QUESTION, ANSWER])),
        (
            "chatml",
            {"messages": [{**QUESTION, "name": None}, ANSWER], "tools": None},
            Conversation([QUESTION, ANSWER]),
        ),
        (
            "sharegpt",
            {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            Conversation([{"role": "system", "content": "S"}, QUESTION, ANSWER]),
        ),
        ("prompt-completion", {"prompt": "Q", "completion": " A"}, Continuation("Q", " A")),
        (
            "prompt-completion",
            {"prompt": [QUESTION], "completion": [ANSWER]},
            Conversation([QUESTION, ANSWER], prompt_length=1),
        ),
        ("text", {"text": "T"}, Text("T")),
    ],
)
def test_good_rows(format_name: str, fields: dict[str, Any], expected: object) -> None:
    assert parse_row(format_name, fields) == expected


@pytest.mark.parametrize(("context", "user"), [("C", "I\n\nC"), ("", "I"), (None, "I")])
def test_alpaca_joins_instruction_and_input(context: str | None, user: str) -> None:
    example = parse_row("alpaca", {"instruction": "I", "input": context, "output": "O"})
    assert isinstance(example, Conversation)
    assert example.messages == [{"role": "user", "content": user}, {"role": "assistant", "content": "O"}]
    assert example.plain == Continuation(f"### Instruction:\n{user}\n\n### Response:\n", "O")


@pytest.mark.parametrize(
    ("format_name", "fields", "problem"),
    [
        ("chatml", {"messages": "Q"}, "field messages is not a list"),
        ("chatml", {"messages": []}, "with at least one"),
        ("chatml", {"messages": ["Q"]}, r"messages\[0\] is a str"),
        ("chatml", {"messages": [{"content": "Q"}]}, r"messages\[0\]\.role is missing"),
        ("chatml", {"messages": [{"role": "user"}, ANSWER]}, r"messages\[0\]\.content is missing"),
        ("chatml", {"messages": [{"role": "user", "content": 3}, ANSWER]}, r"messages\[0\]\.content is a int"),
        ("chatml", {"messages": [QUESTION]}, "no turn of the assistant"),
        ("sharegpt", {"conversations": [{"from": "martian", "value": "Q"}]}, "is 'martian', not one of"),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, r"conversations\[0\]\.value is missing"),
        ("prompt-completion", {"prompt": "Q", "completion": None}, "field completion is missing"),
        ("prompt-completion", {"prompt": [QUESTION, ANSWER], "completion": [QUESTION]}, "no turn of the assistant"),
        ("alpaca", {"instruction": "I", "output": 7}, "field output is a int, not text"),
        ("text", {"text": None}, "field text is missing"),
    ],
)
def test_broken_rows_name_the_field(format_name: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblemError, match=problem):
        parse_row(format_name, fields)
