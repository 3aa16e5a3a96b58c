"""Every format: what it makes of a good row, and what it says of a broken one."""

from typing import Any

import pytest

from finetune_api.objectives import FORMATS, ObjectiveType, Rows
from finetune_trainer.data.formats import (
    NEEDED,
    Continuation,
    Conversation,
    Judged,
    Preference,
    Prompt,
    RowProblemError,
    Text,
    detect_format,
    parse_row,
)
from finetune_trainer.errors import InvalidInputError

QUESTION = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
WORSE = {"role": "assistant", "content": "B"}


@pytest.mark.parametrize(
    ("objective", "columns", "expected"),
    [
        ("sft", ["messages", "id"], "chatml"),
        ("sft", ["conversations"], "sharegpt"),
        ("sft", ["prompt", "completion"], "prompt-completion"),
        ("sft", ["instruction", "input", "output"], "alpaca"),
        ("pretrain", ["instruction", "output", "text"], "alpaca"),
        ("pretrain", ["text"], "text"),
        ("dpo", ["prompt", "chosen", "rejected"], "preference"),
        ("reward", ["chosen", "rejected"], "preference"),
        ("kto", ["prompt", "completion", "label"], "unpaired-preference"),
        ("kto", ["chosen", "rejected"], "preference"),
        ("grpo", ["prompt", "answer"], "prompts"),
        ("grpo", ["prompt", "completion"], "prompts"),
        ("ppo", ["messages"], "chatml"),
        ("rloo", ["instruction", "output"], "alpaca"),
    ],
)
def test_auto_goes_by_the_columns(objective: ObjectiveType, columns: list[str], expected: str) -> None:
    assert detect_format(objective, "auto", columns, "file:///d") == expected


def test_unknown_columns_are_listed_with_what_each_format_needs() -> None:
    with pytest.raises(InvalidInputError) as caught:
        detect_format("sft", "auto", ["question", "answer"], "file:///d")
    assert "file:///d has the columns answer, question" in str(caught.value)
    needs = [f"{name} needs {', '.join(NEEDED[name])}" for name in FORMATS["language"]]
    assert all(need in str(caught.value) for need in needs)


def test_rows_of_another_objective_are_recognised() -> None:
    with pytest.raises(InvalidInputError, match=r"preference needs chosen, rejected; .*chatml train .* sft, pretrain"):
        detect_format("dpo", "auto", ["messages"], "file:///d")


def test_a_named_format_needs_its_columns() -> None:
    with pytest.raises(InvalidInputError, match="alpaca needs instruction, output"):
        detect_format("sft", "alpaca", ["messages"], "file:///d")


def test_a_named_format_has_to_fit_the_objective() -> None:
    with pytest.raises(
        InvalidInputError, match=r"dataset\.format alpaca does not fit objective\.type dpo, which takes preference"
    ):
        detect_format("dpo", "alpaca", ["instruction", "output"], "file:///d")


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
    assert parse_row("language", format_name, fields) == [expected]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "Q", "chosen": " A", "rejected": " B"}, Preference("Q", " A", " B")),
        (
            {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [WORSE]},
            Preference([QUESTION], [ANSWER], [WORSE]),
        ),
        ({"prompt": [QUESTION], "chosen": "A", "rejected": "B"}, Preference([QUESTION], [ANSWER], [WORSE])),
        ({"prompt": "Q", "chosen": [ANSWER], "rejected": [WORSE]}, Preference([QUESTION], [ANSWER], [WORSE])),
        (
            {"prompt": "Q", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, WORSE]},
            Preference([QUESTION], [ANSWER], [WORSE]),
        ),
        (
            {"chosen": [QUESTION, ANSWER, QUESTION, ANSWER], "rejected": [QUESTION, ANSWER, QUESTION, WORSE]},
            Preference([QUESTION, ANSWER, QUESTION], [ANSWER], [WORSE]),
        ),
        (
            {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, ANSWER, QUESTION, WORSE]},
            Preference([QUESTION], [ANSWER], [ANSWER, QUESTION, WORSE]),
        ),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            Preference("The sky is", " blue.", " green."),
        ),
    ],
)
def test_preference_with_and_without_a_prompt(fields: dict[str, Any], expected: Preference) -> None:
    assert parse_row("preference", "preference", fields) == [expected]
    assert parse_row("unpaired", "preference", fields) == [
        Judged(expected.prompt, expected.chosen, True),
        Judged(expected.prompt, expected.rejected, False),
    ]


@pytest.mark.parametrize(("label", "expected"), [(True, True), (0, False), ("False", False), ("1", True)])
def test_unpaired_preference(label: object, expected: bool) -> None:
    row = {"prompt": "Q", "completion": [ANSWER], "label": label}
    assert parse_row("unpaired", "unpaired-preference", row) == [Judged([QUESTION], [ANSWER], expected)]


@pytest.mark.parametrize(
    ("format_name", "fields", "expected"),
    [
        ("prompts", {"prompt": "Q"}, Prompt("Q", "", {})),
        ("prompts", {"prompt": "Q", "answer": "A", "level": 3}, Prompt("Q", "A", {"level": 3})),
        ("prompts", {"prompt": "Q", "answer": 4, "reference": "four"}, Prompt("Q", "four", {"answer": 4})),
        ("prompts", {"prompt": [QUESTION], "solution": 4}, Prompt([QUESTION], "4", {})),
        ("prompts", {"prompt": [QUESTION], "completion": [ANSWER]}, Prompt([QUESTION], "A", {})),
        ("prompt-completion", {"prompt": "Q", "completion": "A", "id": 1}, Prompt("Q", "A", {"id": 1})),
        ("chatml", {"messages": [QUESTION, WORSE, QUESTION, ANSWER]}, Prompt([QUESTION, WORSE, QUESTION], "A", {})),
        (
            "alpaca",
            {"instruction": "Q", "output": "A"},
            Prompt([QUESTION], "A", {}, plain="### Instruction:\nQ\n\n### Response:\n"),
        ),
    ],
)
def test_prompts(format_name: str, fields: dict[str, Any], expected: Prompt) -> None:
    assert parse_row("prompts", format_name, fields) == [expected]


@pytest.mark.parametrize(("context", "user"), [("C", "I\n\nC"), ("", "I"), (None, "I")])
def test_alpaca_joins_instruction_and_input(context: str | None, user: str) -> None:
    [example] = parse_row("language", "alpaca", {"instruction": "I", "input": context, "output": "O"})
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
        ("preference", {"chosen": "A", "rejected": [ANSWER]}, "chosen and rejected is text, the other"),
        ("preference", {"chosen": "A", "rejected": "B"}, "begin differently and there is no field prompt"),
        ("preference", {"prompt": "Q", "chosen": "A", "rejected": None}, "field rejected is missing"),
        ("unpaired-preference", {"prompt": "Q", "completion": "A", "label": "good"}, "field label is 'good', not true"),
        ("prompts", {"prompt": None, "answer": "A"}, "field prompt is missing"),
    ],
)
def test_broken_rows_name_the_field(format_name: str, fields: dict[str, Any], problem: str) -> None:
    rows: Rows = next(rows for rows, formats in FORMATS.items() if format_name in formats)
    with pytest.raises(RowProblemError, match=problem):
        parse_row(rows, format_name, fields)


def test_a_conversation_that_opens_with_its_only_answer_asks_nothing() -> None:
    with pytest.raises(RowProblemError, match="nothing before it to be answered"):
        parse_row("prompts", "chatml", {"messages": [ANSWER]})
