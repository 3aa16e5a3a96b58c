"""What ``finetune data preview`` shows, and rows with tool calls, read off it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.data.formats import RowProblemError, parse_row
from finetune_trainer.data.preview import main, preview
from finetune_trainer.errors import InvalidInputError
from tests.trainer.preparing import write_rows

Make = Callable[..., TrainingPlan]

WITH_TOOLS = """{% if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
ASKED = {"role": "user", "content": "Rain in Ulm?"}
RESULT = {"role": "tool", "content": "yes"}
ANSWER = {"role": "assistant", "content": "Take a coat."}


def _call(arguments: object) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _shown(make: Make, rows: list[dict[str, Any]], path: Path, **changes: Any) -> list[str]:
    plan = make(data=write_rows(path, rows), **changes)
    return [str(row) for row in preview(plan, 10)]


def test_trained_tokens_are_marked(make: Make, tmp_path: Path) -> None:
    [shown] = _shown(make, [{"messages": [ASKED, ANSWER]}], tmp_path / "rows.jsonl")
    title, text = shown.split("\n", 1)
    assert title.startswith("rows.jsonl row 1: ") and title.endswith(" trained")
    assert text == "<|im_start|>user\nRain in Ulm?<|im_end|>\n<|im_start|>assistant\n[[Take a coat.<|im_end|>\n]]\n"


def test_each_side_of_a_pair_and_what_is_left_out(make: Make, tmp_path: Path) -> None:
    pair = {"prompt": [ASKED], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "No."}]}
    chosen, rejected = _shown(make, [pair], tmp_path / "rows.jsonl", objective={"type": "dpo"})
    assert chosen.startswith("rows.jsonl row 1 chosen: ") and "[[Take a coat.<|im_end|>\n]]" in chosen
    assert rejected.startswith("rows.jsonl row 1 rejected: ") and "[[No.<|im_end|>\n]]" in rejected
    liked, _ = _shown(make, [pair], tmp_path / "rows.jsonl", objective={"type": "kto"})
    assert liked.startswith("rows.jsonl row 1 liked: ")
    [asked] = _shown(make, [{"prompt": "Why?", "answer": "42"}], tmp_path / "rows.jsonl", objective={"type": "grpo"})
    assert asked.startswith("rows.jsonl row 1, reference '42': ") and asked.endswith(" 0 trained\nWhy?\n")
    [lost] = _shown(make, [{"messages": [ASKED, ANSWER]}], tmp_path / "rows.jsonl", training={"max_length": 8})
    assert "tokens, left out: training.maxLength 8 cuts off the whole response" in lost


def test_the_command_prints_rows_and_errors(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": [ASKED, ANSWER]}] * 5)
    (tmp_path / "plan.json").write_text(make(data=data).to_json())
    assert main(["--plan", str(tmp_path / "plan.json"), "--rows", "2"]) == ExitCode.OK
    assert capsys.readouterr().out.count("[[Take a coat.<|im_end|>\n]]") == 2
    write_rows(data, [{"question": "Why?"}])
    assert main(["--plan", str(tmp_path / "plan.json")]) == ExitCode.INVALID
    assert "has the columns question" in capsys.readouterr().err


def test_tool_calls_read_the_same_in_every_form(make: Make, tmp_path: Path) -> None:
    """Arguments as object and as JSON text, tools as list and as JSON text, ShareGPT, and Parquet with its nulls."""
    import pyarrow
    import pyarrow.parquet

    arguments = {"city": "Ulm"}
    turns = {
        "messages": [ASKED, _call(arguments), RESULT, ANSWER],
        "tools": [TOOL],
    }
    as_text = {"messages": [ASKED, _call(json.dumps(arguments)), RESULT, ANSWER], "tools": json.dumps([TOOL])}
    changes: dict[str, Any] = {"model": {"chat_template": WITH_TOOLS}, "training": {"max_length": 1024}}
    sft = [row.spans for row in preview(make(data=write_rows(tmp_path / "a.jsonl", [turns]), **changes), 1)]
    assert [span.text for span in sft[0] if span.trained] == [
        '<call>{"name": "weather", "arguments": {"city": "Ulm"}}</call><|im_end|>\n',
        "Take a coat.<|im_end|>\n",
    ]
    assert '"parameters": {"properties": {"city": {"type": "string"}}}' in sft[0][0].text

    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Rain in Ulm?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": arguments})},
            {"from": "observation", "value": "yes"},
            {"from": "gpt", "value": "Take a coat."},
        ],
        "tools": json.dumps([TOOL]),
    }
    for number, row in enumerate([as_text, sharegpt]):
        plan = make(data=write_rows(tmp_path / f"{number}.jsonl", [row]), **changes)
        assert [shown.spans for shown in preview(plan, 1)] == sft

    other = {
        "type": "function",
        "function": {"name": "time", "parameters": {"properties": {"zone": {"type": "string"}}}},
    }
    asking = {"messages": [ASKED, ANSWER], "tools": [other]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([turns, asking]), tmp_path / "a.parquet")
    assert preview(make(data=tmp_path / "a.parquet", **changes), 1)[0].spans == sft[0]


def test_a_template_that_drops_the_tools_is_refused(make: Make, tmp_path: Path) -> None:
    row = {"messages": [ASKED, _call({}), RESULT, ANSWER]}
    with pytest.raises(InvalidInputError, match=r"writes nothing of the function weather.*set model\.chatTemplate"):
        _shown(make, [row], tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("calls", "tools", "problem"),
    [
        ("weather", None, r"messages\[0\]\.tool_calls is a str, not a list"),
        ([{"function": {}}], None, r"tool_calls\[0\] names no function"),
        ([{"name": "weather", "arguments": "{"}], None, r"tool_calls\[0\]\.arguments is text and not JSON: "),
        ([{"name": "weather", "arguments": [1]}], None, r"tool_calls\[0\]\.arguments is a list, not an object"),
        ([{"name": "weather"}], "[", "field tools is text and not JSON"),
        ([{"name": "weather"}], {"a": 1}, "field tools is a dict, not a list"),
    ],
)
def test_broken_tool_calls_name_the_field(calls: object, tools: object, problem: str) -> None:
    row = {"messages": [{"role": "assistant", "tool_calls": calls}], "tools": tools}
    with pytest.raises(RowProblemError, match=problem):
        parse_row("language", "chatml", row)
