"""From an example to token ids and labels: the chat template, the end of the text, and the mask over the prompt.

The mask is found by rendering growing prefixes of the conversation, not by ``{% generation %}`` tags: the stock
templates of Llama 3.1, Qwen3 and Gemma have none, and would mask everything.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_trainer.data.formats import (
    Continuation,
    Conversation,
    Judged,
    Message,
    Preference,
    Prompt,
    Text,
    Turns,
)
from finetune_trainer.errors import InvalidInputError

IGNORED = -100
"""Label of a token that the loss leaves out."""

_MARK = "Goodbye"

_RENDER_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""Today, to templates that print it: a run that goes on tomorrow has to see the rows that it saw today."""


@dataclass(frozen=True)
class Encoded:
    """One row for the model; ``input_ids`` and ``labels`` are as long as one another, not yet cut."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class _Rendering:
    """Text of a row and the character spans of its responses."""

    text: str
    spans: list[tuple[int, int]]


class UnstableTemplateError(Exception):
    """The template renders the start of a conversation otherwise once more turns follow."""


class Encoder:
    """Encodes examples with one tokenizer.

    ``response_only``: labels on responses only, else on every token. Stable conversations give one row. Where the
    template rewrites earlier turns (Qwen3 drops their reasoning) no single text shows every turn as the model sees it
    when it answers, so each response becomes a row of its own, with the history as rendered at that turn;
    ``rewritten`` counts these conversations.
    """

    def __init__(self, tokenizer: Any, response_only: bool) -> None:
        if tokenizer.eos_token_id is None:
            raise InvalidInputError("model.source: the tokenizer names no end-of-text token, so no answer could end")
        self.rewritten = 0
        self._tokenizer = tokenizer
        self._template = re.sub(
            r"""strftime_now\((['"])(.*?)\1\)""",
            lambda call: repr(_RENDER_DATE.strftime(call[2])),
            tokenizer.chat_template or "",
        )
        self._response_only = response_only
        self.stop_ids = frozenset({tokenizer.eos_token_id, *self._end_of_turn()})
        """Tokens that end an answer: the end of the text, and what the template writes behind an answer."""

    def encode(self, example: Conversation | Continuation | Text) -> list[Encoded]:
        """The rows of one example. Raises: InvalidInputError, also with what the template itself refuses."""
        if isinstance(example, Conversation):
            if self._tokenizer.chat_template is not None or example.plain is None:
                return self._encode_conversation(example)
            example = example.plain
        return [self._encode_text(example)]

    def encode_preference(self, example: Preference) -> dict[str, Any]:
        """``prompt_ids``, ``chosen_ids`` and ``rejected_ids``, as TRL's DPOTrainer makes them."""
        prompt_ids, [chosen_ids, rejected_ids] = self._encode_answers(
            example.prompt, [example.chosen, example.rejected], example.tools
        )
        return {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}

    def encode_judged(self, example: Judged) -> dict[str, Any]:
        """``prompt_ids``, ``completion_ids`` and ``label``, as TRL's KTOTrainer makes them."""
        prompt_ids, [completion_ids] = self._encode_answers(example.prompt, [example.completion], example.tools)
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "label": example.label}

    def encode_prompt(self, example: Prompt) -> dict[str, Any]:
        """``prompt`` as text with the opening of the answer, its ``prompt_ids``, ``reference`` and ``fields``."""
        prompt = example.prompt
        if self._tokenizer.chat_template is None and example.plain is not None:
            prompt = example.plain
        text = prompt if isinstance(prompt, str) else self._render(prompt, example.tools, generate=True)
        return {
            "prompt": text,
            "prompt_ids": self._token_ids(text, plain=isinstance(prompt, str)),
            "reference": example.reference,
            "fields": json.dumps(example.fields, ensure_ascii=False, default=str),
        }

    def _encode_answers(
        self, prompt: Turns, answers: list[Turns], tools: list[Any] | None
    ) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt and of each answer; the answers begin where one of them parts from the prompt's ids."""
        rows = []
        if isinstance(prompt, str):
            eos = self._tokenizer.eos_token
            prompt_ids = self._token_ids(prompt, plain=True)
            for answer in answers:
                text = f"{prompt}{answer}"
                rows.append(self._token_ids(text if text.endswith(eos) else text + eos, plain=True))
        else:
            prompt_ids = self._token_ids(self._render(prompt, tools, generate=True), plain=False)
            for answer in answers:
                text = self._render([*prompt, *answer], tools)
                rows.append(self._token_ids(text, plain=False))
        border = min(_common_length(prompt_ids, row) for row in rows)
        ends = [self._missing_end(row[border:]) for row in rows]
        return prompt_ids[:border], [[*row[border:], *end] for row, end in zip(rows, ends, strict=True)]

    def _token_ids(self, text: str, plain: bool) -> list[int]:
        """Special tokens are added to plain text only: a template writes its own."""
        return list(self._tokenizer(text, add_special_tokens=plain)["input_ids"])

    def _encode_text(self, example: Continuation | Text) -> Encoded:
        eos = self._tokenizer.eos_token
        if isinstance(example, Text):
            text = example.text if example.text.endswith(eos) else example.text + eos
            input_ids = self._tokenizer(text)["input_ids"]
            return Encoded(input_ids, list(input_ids))
        completion = example.completion if example.completion.endswith(eos) else example.completion + eos
        text = example.prompt + completion
        return self._tokenize(_Rendering(text, [(len(example.prompt), len(text))]), add_special_tokens=True)

    def _encode_conversation(self, example: Conversation) -> list[Encoded]:
        if not self._response_only:
            text = self._render(example.messages, example.tools)
            return [self._tokenize(_Rendering(text, [(0, len(text))]), add_special_tokens=False)]
        turns = [
            index
            for index, message in enumerate(example.messages)
            if message["role"] == "assistant" and index >= example.prompt_length
        ]
        try:
            renderings = [self._render_spans(example, turns, len(example.messages))]
        except UnstableTemplateError:
            self.rewritten += 1
            renderings = [self._render_spans(example, [turn], turn + 1) for turn in turns]
        return [self._end_response(self._tokenize(rendering, add_special_tokens=False)) for rendering in renderings]

    def _render(self, messages: list[Message], tools: list[Any] | None, generate: bool = False) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise InvalidInputError(
                "the dataset holds conversations and the model's tokenizer has no chat template: set "
                "model.chatTemplate, or use a model that was tuned for chat"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generate,
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InvalidInputError(
                f"the chat template refuses a conversation of {roles}: {error}; mend the rows or set model.chatTemplate"
            ) from error
        unseen = [name for name in _list_functions(messages, tools) if name not in text]
        if unseen:
            raise InvalidInputError(
                f"the chat template writes nothing of the function {unseen[0]}, which the rows' tools or tool calls name: "
                "set model.chatTemplate to one with tools, or leave them out of the rows"
            )
        return str(text)

    def _render_spans(self, example: Conversation, turns: list[int], length: int) -> _Rendering:
        """The first ``length`` messages and the spans of ``turns`` in them.

        A span starts where the prompt of its turn, with the opening of the answer, ends. Where the template opens the
        answer otherwise than it later writes it (an opening ``<think>`` of reasoning models), it starts where the two part.
        """
        messages, tools = example.messages, example.tools
        text = self._render(messages[:length], tools)
        spans = []
        for turn in turns:
            history = self._render(messages[:turn], tools) if turn > 0 else ""
            opened = self._render(messages[:turn], tools, generate=True) if turn > 0 else ""
            answered = self._render(messages[: turn + 1], tools)
            if not text.startswith(history) or not text.startswith(answered):
                raise UnstableTemplateError
            start = _common_length(opened, text)
            if start < len(history):
                raise UnstableTemplateError
            spans.append((start, len(answered)))
        return _Rendering(text, spans)

    def _tokenize(self, rendering: _Rendering, add_special_tokens: bool) -> Encoded:
        """Token ids, labelled where they touch a span: a token across the border belongs to the response, as in TRL."""
        if not self._tokenizer.is_fast:
            raise InvalidInputError(
                f"model.source: the tokenizer {type(self._tokenizer).__name__} gives no character offsets, which the "
                "mask over the prompt needs: set objective.responseOnly: false, or use a model with a fast tokenizer"
            )
        encoding = self._tokenizer(rendering.text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        input_ids = encoding["input_ids"]
        if not self._response_only:
            return Encoded(input_ids, list(input_ids))
        labels = [IGNORED] * len(input_ids)
        spans = iter(rendering.spans)
        span = next(spans, None)
        for position, (start, end) in enumerate(encoding["offset_mapping"]):
            while span is not None and start >= span[1]:
                span = next(spans, None)
            if span is None:
                break
            if end > span[0] and end > start:
                labels[position] = input_ids[position]
        return Encoded(input_ids, labels)

    def _end_response(self, row: Encoded) -> Encoded:
        """Adds the end-of-text token where the template ends the last answer with none: it has to be learnt."""
        position = len(row.labels)
        while position > 0 and row.labels[position - 1] != IGNORED:
            position -= 1
        if position == len(row.labels):
            return row
        end = self._missing_end(row.labels[position:])
        return Encoded([*row.input_ids, *end], [*row.labels, *end])

    def _missing_end(self, answer: list[int]) -> list[int]:
        return [] if self.stop_ids.intersection(answer) else [self._tokenizer.eos_token_id]

    def _end_of_turn(self) -> set[int]:
        """Special tokens that the template writes behind an answer."""
        if self._tokenizer.chat_template is None:
            return set()
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _MARK}]
        try:
            text = self._render(turns, None)
        except InvalidInputError:
            # What the template refuses here it may take from the rows, or refuse there with the rows' roles named.
            return set()
        special = {token_id for token_id, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        return special.intersection(self._token_ids(text.rpartition(_MARK)[2], plain=False))


def _list_functions(messages: list[Message], tools: list[Any] | None) -> list[str]:
    """Names of the functions that are offered or called."""
    functions = [*(tools or []), *(call for message in messages for call in message.get("tool_calls", []))]
    return [str(function.get("function", function).get("name", "")) for function in functions]


def _common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """Number of characters, or tokens, that both begin with."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length
