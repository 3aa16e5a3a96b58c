"""The kinds of prepared rows: their columns, how an example becomes such rows, and what a length does to them."""

from collections.abc import Callable, Iterable, Set
from typing import Any, Literal, NamedTuple

from finetune_api.objectives import OBJECTIVES, Rows
from finetune_api.plan import TrainingPlan
from finetune_trainer.data.encode import IGNORED, Encoder
from finetune_trainer.data.formats import Continuation, Conversation, Text

Row = dict[str, Any]
"""Values by column."""

ColumnType = Literal["tokens", "text", "flag", "number"]


class Kind(NamedTuple):
    """One kind of prepared rows. Rows are measured in tokens that the model sees; of a pair, those of the longer side."""

    columns: dict[str, ColumnType]
    encode: Callable[[Encoder, Any], list[Row]]
    """The rows of an example, not yet cut."""
    count: Callable[[Row], int]
    """Length of a row."""
    least: Callable[[Row], int | None]
    """The smallest length that leaves something to train; None: there is nothing."""
    stop: Callable[[Row, Set[int]], int | None]
    """The smallest length at which one of these tokens, which end answers, is trained; None: there is none."""
    cut: Callable[[Row, int], Row]
    """The row within a length that leaves something to train."""
    loss: str
    """What a smaller length does, in a message: ``maxLength 8 <loss> of 3 rows``."""


def _find(tokens: Iterable[int], wanted: Callable[[int], bool], before: int = 0) -> int | None:
    """The length up to the first wanted token, ``before`` tokens ahead included."""
    return next((before + index for index, token in enumerate(tokens, start=1) if wanted(token)), None)


def _encode_language(encoder: Encoder, example: Conversation | Continuation | Text) -> list[Row]:
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in encoder.encode(example)]


def _least_language(row: Row) -> int | None:
    # The first token is never predicted, so a label there alone trains nothing.
    return _find(row["labels"][1:], lambda label: label != IGNORED, before=1)


def _stop_language(row: Row, stops: Set[int]) -> int | None:
    return _find(row["labels"], lambda label: label in stops)


def _cut_language(row: Row, length: int) -> Row:
    return {name: row[name][:length] for name in ("input_ids", "labels")}


_ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")


def _count_answers(row: Row) -> int:
    return len(row["prompt_ids"]) + max(len(row[name]) for name in _ANSWERS if name in row)


def _least_answers(row: Row) -> int:
    return len(row["prompt_ids"]) + 1


def _stop_answers(row: Row, stops: Set[int]) -> int | None:
    answer = row["chosen_ids"] if "chosen_ids" in row else row["completion_ids"]
    return _find(answer, lambda token: token in stops, before=len(row["prompt_ids"]))


def _cut_answers(row: Row, length: int) -> Row:
    """As TRL's collators of DPO and KTO cut: at the end."""
    room = length - len(row["prompt_ids"])
    return {name: value[:room] if name in _ANSWERS else value for name, value in row.items()}


_KINDS: dict[Rows, Kind] = {
    "language": Kind(
        {"input_ids": "tokens", "labels": "tokens"},
        _encode_language,
        lambda row: len(row["input_ids"]),
        _least_language,
        _stop_language,
        _cut_language,
        "cuts off the whole response",
    ),
    "preference": Kind(
        {"prompt_ids": "tokens", "chosen_ids": "tokens", "rejected_ids": "tokens"},
        lambda encoder, example: [encoder.encode_preference(example)],
        _count_answers,
        _least_answers,
        _stop_answers,
        _cut_answers,
        "is filled by the prompt alone",
    ),
    "unpaired": Kind(
        {"prompt_ids": "tokens", "completion_ids": "tokens", "label": "flag"},
        lambda encoder, example: [encoder.encode_judged(example)],
        _count_answers,
        _least_answers,
        _stop_answers,
        _cut_answers,
        "is filled by the prompt alone",
    ),
    "prompts": Kind(
        {"prompt": "text", "prompt_ids": "tokens", "reference": "text", "fields": "text"},
        lambda encoder, example: [encoder.encode_prompt(example)],
        lambda row: len(row["prompt_ids"]),
        _least_answers,
        lambda row, stops: None,
        lambda row, length: row,
        "is filled by the prompt",
    ),
}


def kind_of(plan: TrainingPlan) -> Kind:
    """The kind of rows that the plan's objective is trained on."""
    kind = _KINDS[OBJECTIVES[plan.objective.type].rows]
    if plan.objective.type != "reward":
        return kind
    # As TRL's RewardTrainer: the score stands at the last token, so a cut answer is another answer.
    return kind._replace(least=_count_answers, loss="would cut an answer")
