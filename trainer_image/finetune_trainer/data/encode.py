"""From an example to token ids and labels: the chat template, the end of the text, and the mask over the prompt.

The mask is found by rendering growing prefixes of the conversation, not by ``{% generation %}`` tags: the stock
templates of Llama 3.1, Qwen3 and Gemma have none, and would mask everything.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_trainer.data.formats import Continuation, Conversation, Example, Text
from finetune_trainer.errors import InvalidInputError

IGNORED = -100
"""Label of a token that the loss leaves out."""

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
        self._special_ids = {
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        } | {tokenizer.eos_token_id}

    def encode(self, example: Example) -> list[Encoded]:
        """The rows of one example. Raises: InvalidInputError, also with what the template itself refuses."""
        if isinstance(example, Conversation):
            if self._tokenizer.chat_template is not None:
                return self._encode_conversation(example)
            if example.plain is None:
                raise InvalidInputError(
                    "the dataset holds conversations and the model's tokenizer has no chat template: set "
                    "model.chatTemplate, or use a model that was tuned for chat"
                )
            example = example.plain
        return [self._encode_text(example)]

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
            text = self._render(example, len(example.messages))
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

    def _render(self, example: Conversation, length: int, generate: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                example.messages[:length],
                tools=example.tools,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generate,
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in example.messages[:length])
            raise InvalidInputError(
                f"the chat template refuses a conversation of {roles}: {error}; mend the rows or set model.chatTemplate"
            ) from error
        return str(text)

    def _render_spans(self, example: Conversation, turns: list[int], length: int) -> _Rendering:
        """The first ``length`` messages and the spans of ``turns`` in them.

        A span starts where the prompt of its turn, with the opening of the answer, ends. Where the template opens the
        answer otherwise than it later writes it (an opening ``<think>`` of reasoning models), it starts where the two part.
        """
        text = self._render(example, length)
        spans = []
        for turn in turns:
            history = self._render(example, turn) if turn > 0 else ""
            opened = self._render(example, turn, generate=True) if turn > 0 else ""
            answered = self._render(example, turn + 1)
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
        if position == len(row.labels) or self._special_ids.intersection(row.labels[position:]):
            return row
        eos = self._tokenizer.eos_token_id
        return Encoded([*row.input_ids, eos], [*row.labels, eos])


def _common_length(one: str, other: str) -> int:
    """Number of characters that both begin with."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length
