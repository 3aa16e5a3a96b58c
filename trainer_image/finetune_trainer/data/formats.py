"""The dataset formats: which columns each needs, and how a row becomes an example.

alpaca: Stanford Alpaca; chatml: OpenAI's ``messages``; sharegpt: ``conversations`` of from/value; preference,
unpaired-preference and prompts: as TRL's dataset formats.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from finetune_api.objectives import OBJECTIVES, ObjectiveType, Rows
from finetune_api.plan import DatasetFormat
from finetune_trainer.errors import InvalidInputError

Message = dict[str, Any]
"""``role``, ``content`` and whatever else the chat template reads."""


@dataclass(frozen=True)
class Continuation:
    """Plain text that follows plain text, as TRL's prompt-completion rows: no template; the response is the rest."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Conversation:
    """Rendered by the chat template; the responses are the assistant's turns."""

    messages: list[Message]
    tools: list[Any] | None = None
    prompt_length: int = 0
    """Turns at the start that are no responses, whoever speaks."""
    plain: Continuation | None = None
    """What stands in for the conversation when the tokenizer has no chat template; None: nothing does."""


@dataclass(frozen=True)
class Text:
    """Plain text; all of it is trained."""

    text: str


Turns = str | list[Message]
"""Plain text, or messages for the chat template."""


@dataclass(frozen=True)
class Preference:
    """A prompt with the better and the worse answer; all three are text, or all three are messages."""

    prompt: Turns
    chosen: Turns
    rejected: Turns
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Judged:
    """A prompt with one answer, which is liked or not; both are text, or both are messages."""

    prompt: Turns
    completion: Turns
    label: bool
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt for the model to answer."""

    prompt: Turns
    reference: str
    """The right or wanted answer; empty: the row has none."""
    fields: dict[str, Any]
    """The row's other fields, for reward functions."""
    tools: list[Any] | None = None
    plain: str | None = None
    """What stands in for messages when the tokenizer has no chat template."""


Example = Conversation | Continuation | Text | Preference | Judged | Prompt


class RowProblemError(Exception):
    """What is wrong with which field of a row."""


NEEDED: dict[str, tuple[str, ...]] = {
    "chatml": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
    "preference": ("chosen", "rejected"),
    "unpaired-preference": ("prompt", "completion", "label"),
    "prompts": ("prompt",),
}
"""Columns of each format. ``auto`` looks for them in the order of the objective's formats."""

REFERENCES = ("reference", "answer", "solution", "completion")
"""Fields of the format ``prompts`` in which a reference answer is looked for, in this order."""

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
    "function_response": "tool",
}


def detect_format(objective: ObjectiveType, wanted: DatasetFormat, columns: Iterable[str], where: str) -> str:
    """The format to read rows of these ``columns`` by, of those that ``objective`` can be trained on.

    Raises: InvalidInputError naming the columns and what each format needs.
    """
    formats = OBJECTIVES[objective].formats
    if wanted != "auto" and wanted not in formats:
        raise InvalidInputError(
            f"dataset.format {wanted} does not fit objective.type {objective}, which takes {', '.join(formats)}: "
            f"change one of both; {_name_objectives(wanted)}"
        )
    present = set(columns)
    candidates = formats if wanted == "auto" else (wanted,)
    for name in candidates:
        if present.issuperset(NEEDED[name]):
            return name
    needs = "; ".join(f"{name} needs {', '.join(NEEDED[name])}" for name in candidates)
    others = [name for name, needed in NEEDED.items() if name not in formats and present.issuperset(needed)]
    hint = "".join(f"; {_name_objectives(name)}" for name in others[:1]) if wanted == "auto" else ""
    raise InvalidInputError(
        f"dataset.format {wanted}: {where} has the columns {', '.join(sorted(present)) or '(none)'}; for objective.type "
        f"{objective}, {needs}{hint}"
    )


def _name_objectives(format_name: str) -> str:
    takers = [name for name, objective in OBJECTIVES.items() if format_name in objective.formats]
    return f"rows of the format {format_name} train objective.type {', '.join(takers)}"


def parse_row(rows: Rows, format_name: str, fields: dict[str, Any]) -> list[Example]:
    """The examples in a row, for training on ``rows``. Raises: RowProblemError."""
    example = _PARSERS[format_name](fields)
    if rows == "unpaired" and isinstance(example, Preference):
        return [
            Judged(example.prompt, example.chosen, True, example.tools),
            Judged(example.prompt, example.rejected, False, example.tools),
        ]
    if rows == "prompts" and isinstance(example, Conversation | Continuation):
        others = {name: value for name, value in fields.items() if name not in (*NEEDED[format_name], "tools")}
        return [_ask(example, others)]
    return [example]


def _ask(example: Conversation | Continuation, fields: dict[str, Any]) -> Prompt:
    """The prompt of a row that has its answer: of a conversation, what stands before the last answer."""
    if isinstance(example, Continuation):
        return Prompt(example.prompt, example.completion, fields)
    last = max(index for index, message in enumerate(example.messages) if message["role"] == "assistant")
    if last == 0:
        raise RowProblemError("the conversation has one turn of the assistant and nothing before it to be answered")
    return Prompt(
        example.messages[:last],
        example.messages[last]["content"],
        fields,
        example.tools,
        example.plain.prompt if example.plain else None,
    )


def _text(fields: dict[str, Any], field: str) -> str:
    value = fields.get(field)
    if value is None:
        raise RowProblemError(f"field {field} is missing")
    if not isinstance(value, str):
        raise RowProblemError(f"field {field} is a {type(value).__name__}, not text")
    return value


def _parse_alpaca(fields: dict[str, Any]) -> Example:
    instruction, output = _text(fields, "instruction"), _text(fields, "output")
    context = _text(fields, "input") if fields.get("input") is not None else ""
    messages = [{"role": "system", "content": _text(fields, "system")}] if fields.get("system") else []
    user = f"{instruction}\n\n{context}" if context.strip() else instruction
    plain = Continuation(f"### Instruction:\n{user}\n\n### Response:\n", output)
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
    return Conversation(messages, plain=plain)


def _parse_messages(fields: dict[str, Any], field: str, messages: object) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise RowProblemError(f"field {field} is not a list of messages with at least one")
    parsed: list[Message] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise RowProblemError(f"field {field}[{index}] is a {type(message).__name__}, not an object")
        # Parquet and saved datasets fill the keys that other rows have with nulls; templates test for presence.
        message = {key: value for key, value in message.items() if value is not None}
        if not isinstance(message.get("role"), str):
            raise RowProblemError(f"field {field}[{index}].role is missing or not text")
        if "content" not in message and "tool_calls" not in message:
            raise RowProblemError(f"field {field}[{index}].content is missing")
        message.setdefault("content", "")
        if "tool_calls" in message:
            message["tool_calls"] = _parse_calls(message["tool_calls"], f"{field}[{index}].tool_calls")
        if not isinstance(message["content"], str):
            raise RowProblemError(f"field {field}[{index}].content is a {type(message['content']).__name__}, not text")
        parsed.append(message)
    return parsed


def _parse_tools(fields: dict[str, Any]) -> list[Any] | None:
    """The functions that the assistant may call, as a list or as JSON text of one."""
    tools = fields.get("tools") or None
    if isinstance(tools, str):
        tools = _load_json(tools, "tools") or None
    if tools is not None and not isinstance(tools, list):
        raise RowProblemError(f"field tools is a {type(tools).__name__}, not a list")
    return tools


def _parse_calls(calls: object, where: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates read them: the arguments an object, which OpenAI's interface gives as JSON text."""
    if not isinstance(calls, list):
        raise RowProblemError(f"field {where} is a {type(calls).__name__}, not a list")
    parsed = []
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblemError(f"field {where}[{index}] names no function")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = _load_json(arguments, f"{where}[{index}].arguments")
        if not isinstance(arguments, dict):
            raise RowProblemError(f"field {where}[{index}].arguments is a {type(arguments).__name__}, not an object")
        identity = {"id": call["id"]} if "id" in call else {}
        parsed.append({**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return parsed


def _load_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowProblemError(f"field {where} is text and not JSON: {error.msg} at column {error.colno}") from error


def _conversation(fields: dict[str, Any], field: str, messages: list[Message], prompt_length: int = 0) -> Conversation:
    if not any(message["role"] == "assistant" for message in messages[prompt_length:]):
        raise RowProblemError(f"field {field} has no turn of the assistant")
    return Conversation(messages, _parse_tools(fields), prompt_length)


def _parse_chatml(fields: dict[str, Any]) -> Example:
    return _conversation(fields, "messages", _parse_messages(fields, "messages", fields.get("messages")))


def _parse_sharegpt(fields: dict[str, Any]) -> Example:
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RowProblemError("field conversations is not a list of turns with at least one")
    messages: list[Message] = []
    if fields.get("system"):
        messages.append({"role": "system", "content": _text(fields, "system")})
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RowProblemError(f"field conversations[{index}] is a {type(turn).__name__}, not an object")
        speaker, value = turn.get("from"), turn.get("value")
        role = _SHAREGPT_ROLES.get(str(speaker))
        if role is None:
            raise RowProblemError(
                f"field conversations[{index}].from is {speaker!r}, not one of {', '.join(_SHAREGPT_ROLES)}"
            )
        if not isinstance(value, str):
            raise RowProblemError(f"field conversations[{index}].value is missing or not text")
        if speaker == "function_call":
            where = f"conversations[{index}].value"
            calls = _load_json(value, where)
            calls = _parse_calls(calls if isinstance(calls, list) else [calls], where)
            messages.append({"role": role, "content": "", "tool_calls": calls})
        else:
            messages.append({"role": role, "content": value})
    return _conversation(fields, "conversations", messages)


def _parse_prompt_completion(fields: dict[str, Any]) -> Example:
    if not isinstance(fields.get("prompt"), list):
        return Continuation(_text(fields, "prompt"), _text(fields, "completion"))
    prompt = _parse_messages(fields, "prompt", fields["prompt"])
    completion = _parse_messages(fields, "completion", fields.get("completion"))
    return _conversation(fields, "completion", [*prompt, *completion], len(prompt))


def _parse_text(fields: dict[str, Any]) -> Example:
    return Text(_text(fields, "text"))


def _parse_turns(fields: dict[str, Any], field: str) -> Turns:
    value = fields.get(field)
    return _parse_messages(fields, field, value) if isinstance(value, list) else _text(fields, field)


def _align(prompt: Turns, *answers: Turns) -> tuple[Turns, ...]:
    """Prompt and answers as text if all of them are, else all as messages."""
    if all(isinstance(part, str) for part in (prompt, *answers)):
        return (prompt, *answers)
    return (_as_messages("user", prompt), *(_as_messages("assistant", answer) for answer in answers))


def _as_messages(role: str, turns: Turns) -> list[Message]:
    return [{"role": role, "content": turns}] if isinstance(turns, str) else turns


def _parse_preference(fields: dict[str, Any]) -> Example:
    chosen, rejected = _parse_turns(fields, "chosen"), _parse_turns(fields, "rejected")
    if type(chosen) is not type(rejected):
        raise RowProblemError("one of the fields chosen and rejected is text, the other is a list of messages")
    tools = _parse_tools(fields)
    shared = _shared_length(chosen, rejected)
    if fields.get("prompt") is not None:
        prompt = _parse_turns(fields, "prompt")
        # Some datasets repeat as text what chosen and rejected begin with as messages.
        if not (isinstance(prompt, str) and isinstance(chosen, list) and shared > 0):
            prompt, chosen, rejected = _align(prompt, chosen, rejected)
            return Preference(prompt, chosen, rejected, tools)
    if shared == 0:
        raise RowProblemError("fields chosen and rejected begin differently and there is no field prompt")
    return Preference(chosen[:shared], chosen[shared:], rejected[shared:], tools)


def _shared_length(chosen: Turns, rejected: Turns) -> int:
    """Length of the prompt that both begin with, as in TRL's ``extract_prompt``: neither is left without an answer, and
    a space before the answer belongs to the answer."""
    shortest = min(len(chosen), len(rejected))
    for index in range(shortest):
        if chosen[index] != rejected[index]:
            return index - 1 if index and chosen[index - 1] == " " else index
    return shortest - 1


_LABELS = {"true": True, "1": True, "false": False, "0": False}


def _parse_unpaired(fields: dict[str, Any]) -> Example:
    label = _LABELS.get(str(fields.get("label")).strip().lower())
    if label is None:
        raise RowProblemError(f"field label is {fields.get('label')!r}, not true or false")
    prompt, completion = _align(_parse_turns(fields, "prompt"), _parse_turns(fields, "completion"))
    return Judged(prompt, completion, label, _parse_tools(fields))


def _parse_prompts(fields: dict[str, Any]) -> Example:
    answer = next((name for name in REFERENCES if fields.get(name) is not None), None)
    others = {name: value for name, value in fields.items() if name not in ("prompt", "tools", answer)}
    reference = _reference_text(fields[answer]) if answer else ""
    return Prompt(_parse_turns(fields, "prompt"), reference, others, _parse_tools(fields))


def _reference_text(value: object) -> str:
    """A reference as text: of messages the last one's, of other values their JSON."""
    if isinstance(value, list) and value and isinstance(value[-1], dict) and isinstance(value[-1].get("content"), str):
        return str(value[-1]["content"])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


_PARSERS: dict[str, Callable[[dict[str, Any]], Example]] = {
    "alpaca": _parse_alpaca,
    "chatml": _parse_chatml,
    "sharegpt": _parse_sharegpt,
    "prompt-completion": _parse_prompt_completion,
    "text": _parse_text,
    "preference": _parse_preference,
    "unpaired-preference": _parse_unpaired,
    "prompts": _parse_prompts,
}
