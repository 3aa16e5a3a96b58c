"""Shows rows as the model sees them, the trained tokens marked: ``python -m finetune_trainer.data.preview``."""

import argparse
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.environment import prepare_environment, quiet_libraries
from finetune_trainer.errors import InvalidInputError


class Span(NamedTuple):
    """A run of tokens as text."""

    text: str
    trained: bool


class PreviewedRow(NamedTuple):
    """One prepared row."""

    title: str
    """Where it comes from, and its counts."""
    spans: list[Span]

    def __str__(self) -> str:
        """Trained tokens between ``[[`` and ``]]``."""
        return f"{self.title}\n{''.join(f'[[{span.text}]]' if span.trained else span.text for span in self.spans)}\n"


def preview(plan: TrainingPlan, count: int) -> list[PreviewedRow]:
    """The rows of the first ``count`` examples of ``dataset.source``, encoded and cut as for the training.

    Raises: InvalidInputError as the training would.
    """
    from finetune_trainer.data.encode import Encoder
    from finetune_trainer.data.ingest import Origin, read_examples
    from finetune_trainer.data.rows import kind_of
    from finetune_trainer.data.s3 import fetch_sources
    from finetune_trainer.data.tally import Tally
    from finetune_trainer.model.load import load_tokenizer
    from finetune_trainer.model.source import locate_model

    plan = fetch_sources(plan)
    tokenizer = load_tokenizer(plan, locate_model(plan))
    encoder, kind = Encoder(tokenizer, plan.objective.response_only), kind_of(plan)
    origin = Origin(plan.dataset.source, plan.dataset.split, plan.dataset.format, count)
    shown = []
    for place, example in read_examples(plan, origin, Tally(plan.dataset.source.uri)):
        for row in kind.encode(encoder, example):
            length, least = kind.count(row), kind.least(row)
            limit = plan.training.max_length or length + 1
            if least is None:
                fate = ", left out: no token would be trained"
            elif least > limit:
                fate = f", left out: training.maxLength {limit} {kind.loss}"
            else:
                fate = f", cut to {limit}" if length > limit else ""
                row = kind.cut(row, limit)
            for side, tokens in _list_sides(row):
                trained = sum(is_trained for _, is_trained in tokens)
                title = f"{place}{side}: {length} tokens{fate}, {trained} trained"
                shown.append(PreviewedRow(title, list(_join(tokenizer, tokens))))
    return shown


_Tokens = list[tuple[int, bool]]
"""Ids, each with whether it is trained."""


def _list_sides(row: dict[str, Any]) -> Iterator[tuple[str, _Tokens]]:
    """What the model sees of a row; of a pair, each side."""
    from finetune_trainer.data.encode import IGNORED

    if "labels" in row:
        yield "", [(token, label != IGNORED) for token, label in zip(row["input_ids"], row["labels"], strict=True)]
        return
    prompt = [(token, False) for token in row["prompt_ids"]]
    for name, side in (("chosen_ids", " chosen"), ("rejected_ids", " rejected"), ("completion_ids", "")):
        if name in row:
            liked = (" liked" if row["label"] else " disliked") if "label" in row else side
            yield liked, [*prompt, *((token, True) for token in row[name])]
    if "reference" in row:
        yield (f", reference {row['reference']!r}" if row["reference"] else ""), prompt


def _join(tokenizer: Any, tokens: _Tokens) -> Iterator[Span]:
    for trained, run in groupby(tokens, key=lambda token: token[1]):
        yield Span(tokenizer.decode([token for token, _ in run]), trained)


def main(arguments: list[str] | None = None) -> int:
    """Print the preview; the exit code."""
    from rich.console import Console
    from rich.text import Text

    from finetune_trainer.__main__ import load_plan

    parser = argparse.ArgumentParser(description="Show the first rows as the model sees them.")
    parser.add_argument("--plan", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=3)
    given = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        plan = load_plan(given.plan)
        prepare_environment(plan)
        quiet_libraries()
        rows = preview(plan, given.rows)
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return ExitCode.INVALID
    for row in rows:
        if not console.is_terminal:
            print(row)
            continue
        console.print(Text(row.title, style="bold"))
        console.print(Text.assemble(*((span.text, "black on green" if span.trained else "dim") for span in row.spans)))
        console.print()
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
