"""Reads, checks, cleans and encodes one source into an Arrow file: rows in full length, with what is decided by."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import CleaningPlan, DatasetFormat, ResolvedSource, TrainingPlan
from finetune_trainer.data.clean import Deduplicator, key_of, text_of
from finetune_trainer.data.encode import Encoder
from finetune_trainer.data.formats import Example, RowProblemError, detect_format, parse_row
from finetune_trainer.data.rows import ColumnType, Row, kind_of
from finetune_trainer.data.sources import RawRow, read_rows
from finetune_trainer.data.tally import EXACT, LONG, NEAR, REWRITTEN, SHORT, UNTRAINED, Tally
from finetune_trainer.errors import InvalidInputError

_SHOWN_PROBLEMS = 5
_BATCH = 1000
"""Rows in one Arrow record batch."""

MEASURES: dict[str, ColumnType] = {
    "source_row": "number",
    "place": "text",
    "key": "text",
    "length": "number",
    "least": "number",
    "stop": "number",
}
"""Columns beside those of the kind: row of the source from 1, file and row to be shown, hash of the normalised text, and
the row's ``count``, ``least`` and ``stop``."""


class Origin(NamedTuple):
    """One dataset source with how it is read."""

    source: ResolvedSource
    split: str
    format: DatasetFormat
    limit: int | None = None
    """Rows that are read at most."""


def ingest(plan: TrainingPlan, origin: Origin, encoder: Encoder, duplicates: Deduplicator, path: Path) -> Tally:
    """Write the source's encoded rows; returns what became of them.

    Raises: InvalidInputError naming file, row and field of the first broken rows; nothing is left out in silence.
    """
    tally = Tally(origin.source.uri)
    write_rows(path, {**MEASURES, **kind_of(plan).columns}, encode_rows(plan, origin, encoder, duplicates, tally))
    return tally


def read_examples(plan: TrainingPlan, origin: Origin, tally: Tally) -> Iterator[tuple[str, Example]]:
    """Each example with its place. Raises: InvalidInputError after the last row, when some were broken."""
    format_name: str | None = None
    problems: list[str] = []
    for raw in itertools.islice(read_rows(origin.source, origin.split), origin.limit):
        tally.read += 1
        try:
            if raw.problem is not None:
                raise RowProblemError(raw.problem)
            if format_name is None:
                format_name = detect_format(plan.objective.type, origin.format, raw.fields, origin.source.uri)
            examples = parse_row(OBJECTIVES[plan.objective.type].rows, format_name, raw.fields)
        except RowProblemError as problem:
            problems.append(f"{_place(raw)}: {problem}")
            continue
        if not problems:
            yield from ((_place(raw), example) for example in examples)
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        raise InvalidInputError(f"dataset {tally.uri}: {len(problems)} of {tally.read} rows are broken: {shown}")
    if tally.read == 0:
        raise InvalidInputError(f"dataset {tally.uri}: holds no rows")


def _place(raw: RawRow) -> str:
    return f"{raw.file} row {raw.number}"


def encode_rows(
    plan: TrainingPlan, origin: Origin, encoder: Encoder, duplicates: Deduplicator, tally: Tally
) -> Iterator[Row]:
    """The source's cleaned rows in full length, with ``MEASURES``. Raises: InvalidInputError as ``read_examples``."""
    kind = kind_of(plan)
    for place, example in read_examples(plan, origin, tally):
        text = text_of(example)
        duplicate = duplicates.find(text, place)
        if duplicate is not None:
            how, original = duplicate
            tally.count(EXACT if how == "exact" else NEAR, f"{place}, of {original}")
            continue
        rewritten = encoder.rewritten
        rows = kind.encode(encoder, example)
        if encoder.rewritten > rewritten:
            tally.count(REWRITTEN, place)
        for row in rows:
            length, least = kind.count(row), kind.least(row)
            if least is None:
                tally.count(UNTRAINED, place)
                continue
            fate = _judge_length(plan.dataset.cleaning, length)
            if fate is not None:
                tally.count(fate, f"{place}, {length} tokens")
                continue
            yield {
                "source_row": tally.read,
                "place": place,
                "key": key_of(text).hex(),
                "length": length,
                "least": least,
                "stop": kind.stop(row, encoder.stop_ids),
                **row,
            }


def _judge_length(cleaning: CleaningPlan, length: int) -> str | None:
    if cleaning.min_length is not None and length < cleaning.min_length:
        return SHORT
    if cleaning.max_length is not None and length > cleaning.max_length:
        return LONG
    return None


def write_rows(path: Path, columns: dict[str, ColumnType], rows: Iterator[Row]) -> None:
    """An Arrow stream that ``datasets`` maps."""
    import pyarrow  # type: ignore[import-untyped]

    types: dict[ColumnType, Any] = {
        "tokens": pyarrow.list_(pyarrow.int32()),
        "text": pyarrow.string(),
        "flag": pyarrow.bool_(),
        "number": pyarrow.int64(),
    }
    schema = pyarrow.schema([(name, types[column]) for name, column in columns.items()])
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        while batch := list(itertools.islice(rows, _BATCH)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
