"""The dataset formats: which columns each needs, and how a row becomes an example.

alpaca: Stanford Alpaca; chatml: OpenAI's ``messages``; sharegpt: ``conversations`` of from/value.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

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


Example = Conversation | Continuation | Text


class RowProblemError(Exception):
    """What is wrong with which field of a row."""


NEEDED: dict[str, tuple[str, ...]] = {
    "chatml": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Columns of each format, in the order in which ``auto`` looks for them."""

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


def detect_format(wanted: DatasetFormat, columns: Iterable[str], where: str) -> str:
    """The format to read rows of these ``columns`` by.

    Raises: InvalidInputError naming the columns and what each format needs.
    """
    present = set(columns)
    candidates = NEEDED if wanted == "auto" else {wanted: NEEDED[wanted]}
    for name, needed in candidates.items():
        if present.issuperset(needed):
            return name
    needs = "; ".join(f"{name} needs {', '.join(needed)}" for name, needed in candidates.items())
    raise InvalidInputError(
        f"dataset.format {wanted}: {where} has the columns {', '.join(sorted(present)) or '(none)'}; {needs}"
    )


def parse_row(format_name: str, fields: dict[str, Any]) -> Example:
    """The example in a row. Raises: RowProblemError."""
    return _PARSERS[format_name](fields)


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
        if not isinstance(message["content"], str):
            raise RowProblemError(f"field {field}[{index}].content is a {type(message['content']).__name__}, not text")
        parsed.append(message)
    return parsed


def _conversation(fields: dict[str, Any], field: str, messages: list[Message], prompt_length: int = 0) -> Conversation:
    if not any(message["role"] == "assistant" for message in messages[prompt_length:]):
        raise RowProblemError(f"field {field} has no turn of the assistant")
    tools = fields.get("tools") or None
    if tools is not None and not isinstance(tools, list):
        raise RowProblemError(f"field tools is a {type(tools).__name__}, not a list")
    return Conversation(messages, tools, prompt_length)


def _parse_chatml(fields: dict[str, Any]) -> Example:
    return _conversation(fields, "messages", _parse_messages(fields, "messages", fields.get("messages")))


def _parse_sharegpt(fields: dict[str, Any]) -> Example:
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RowProblemError("field conversations is not a list of turns with at least one")
    messages = [{"role": "system", "content": _text(fields, "system")}] if fields.get("system") else []
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


_PARSERS: dict[str, Callable[[dict[str, Any]], Example]] = {
    "alpaca": _parse_alpaca,
    "chatml": _parse_chatml,
    "sharegpt": _parse_sharegpt,
    "prompt-completion": _parse_prompt_completion,
    "text": _parse_text,
}
