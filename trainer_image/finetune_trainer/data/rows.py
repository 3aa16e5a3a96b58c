"""The kinds of prepared rows: their columns, and how an example becomes such rows and is cut to a length."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from finetune_api.objectives import OBJECTIVES, Rows
from finetune_api.plan import TrainingPlan
from finetune_trainer.data.encode import IGNORED, Encoder
from finetune_trainer.data.formats import Continuation, Conversation, Judged, Preference, Prompt, Text

Row = dict[str, Any]
"""Values by column."""

ColumnType = Literal["tokens", "text", "flag"]


class Kind(NamedTuple):
    """One kind of prepared rows."""

    columns: dict[str, ColumnType]
    encode: Callable[[Encoder, Any], list[Row]]
    """The rows of an example, not yet cut."""
    count: Callable[[Row], int]
    """Tokens that the model sees of a row; of a pair, those of the longer side."""
    cut: Callable[[Row, int], Row | None]
    """The row within so many tokens; None when nothing is left of an answer to train."""
    loss: str
    """What a length that is too small does, in a message: ``maxLength 8 <loss> of 3 rows``."""


def _encode_language(encoder: Encoder, example: Conversation | Continuation | Text) -> list[Row]:
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in encoder.encode(example)]


def _cut_language(row: Row, length: int) -> Row | None:
    input_ids, labels = row["input_ids"][:length], row["labels"][:length]
    # The first token is never predicted, so a label there alone trains nothing.
    if all(label == IGNORED for label in labels[1:]):
        return None
    return {"input_ids": input_ids, "labels": labels}


def _encode_preference(encoder: Encoder, example: Preference) -> list[Row]:
    return [encoder.encode_preference(example)]


def _encode_unpaired(encoder: Encoder, example: Judged) -> list[Row]:
    return [encoder.encode_judged(example)]


def _encode_prompts(encoder: Encoder, example: Prompt) -> list[Row]:
    return [encoder.encode_prompt(example)]


def _count_answers(row: Row) -> int:
    return len(row["prompt_ids"]) + max(len(row[name]) for name in _ANSWERS if name in row)


def _cut_answers(row: Row, length: int) -> Row | None:
    """As TRL's collators of DPO and KTO cut: at the end."""
    room = length - len(row["prompt_ids"])
    if room <= 0:
        return None
    return {name: value[:room] if name in _ANSWERS else value for name, value in row.items()}


def _drop_longer(row: Row, length: int) -> Row | None:
    """As TRL's RewardTrainer: the score stands at the last token, so a cut answer is another answer."""
    return row if _count_answers(row) <= length else None


def _cut_prompts(row: Row, length: int) -> Row | None:
    return row if len(row["prompt_ids"]) < length else None


_ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")

_KINDS: dict[Rows, Kind] = {
    "language": Kind(
        {"input_ids": "tokens", "labels": "tokens"},
        _encode_language,
        lambda row: len(row["input_ids"]),
        _cut_language,
        "cuts off the whole response",
    ),
    "preference": Kind(
        {"prompt_ids": "tokens", "chosen_ids": "tokens", "rejected_ids": "tokens"},
        _encode_preference,
        _count_answers,
        _cut_answers,
        "is filled by the prompt alone",
    ),
    "unpaired": Kind(
        {"prompt_ids": "tokens", "completion_ids": "tokens", "label": "flag"},
        _encode_unpaired,
        _count_answers,
        _cut_answers,
        "is filled by the prompt alone",
    ),
    "prompts": Kind(
        {"prompt": "text", "prompt_ids": "tokens", "reference": "text", "fields": "text"},
        _encode_prompts,
        lambda row: len(row["prompt_ids"]),
        _cut_prompts,
        "is filled by the prompt",
    ),
}


def kind_of(plan: TrainingPlan) -> Kind:
    """The kind of rows that the plan's objective is trained on."""
    kind = _KINDS[OBJECTIVES[plan.objective.type].rows]
    return kind._replace(cut=_drop_longer, loss="would cut an answer") if plan.objective.type == "reward" else kind
