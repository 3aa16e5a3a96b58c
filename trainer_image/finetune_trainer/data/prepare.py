"""The prepared dataset: rows read, checked, encoded, cut and written as Arrow files that every rank maps."""

import hashlib
import itertools
import os
import random
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.data.encode import Encoder
from finetune_trainer.data.formats import RowProblemError, detect_format, parse_row
from finetune_trainer.data.rows import ColumnType, Row, kind_of
from finetune_trainer.data.sources import RawRow, read_rows
from finetune_trainer.errors import InvalidInputError

Warn = Callable[[str], None]

_SHOWN_PROBLEMS = 5
_BATCH = 1000
"""Rows in one Arrow record batch."""


@dataclass
class _Counts:
    """What became of the rows of one source."""

    rows: int = 0
    cut: int = 0
    """Rows cut to maxLength."""
    emptied: int = 0
    """Rows left out: nothing of an answer is within maxLength."""
    rewritten: int = 0
    """Conversations that became a row per response."""


def prepare_data(plan: TrainingPlan, tokenizer: Any, folder: Path, warn: Warn) -> None:
    """Encode the training and validation rows into ``folder``, which appears whole or not at all.

    Raises: InvalidInputError naming file, row and field of the first broken rows; nothing is left out in silence.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _encode_source(plan, plan.dataset.source, tokenizer, building / "train.arrow", warn, plan.dataset.max_samples)
        if plan.dataset.validation_source is not None:
            _encode_source(plan, plan.dataset.validation_source, tokenizer, building / "validation.arrow", warn, None)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@dataclass(frozen=True)
class PreparedData:
    """datasets.Dataset objects with the columns of the objective's kind of rows."""

    train: Any
    validation: Any
    """None without validation data."""
    fingerprint: str
    """Hash of the training rows in order: the same plan over a changed file is another training."""
    largest_id: int
    max_length: int
    """Tokens that no row exceeds: ``training.max_length``, or what was decided for it."""


def load_data(plan: TrainingPlan, folder: Path) -> PreparedData:
    """Map what ``prepare_data`` wrote, split by the plan. Raises: InvalidInputError when a side would be empty."""
    from datasets import Dataset

    train = Dataset.from_file(str(folder / "train.arrow"))
    validation = None
    if plan.dataset.validation_source is not None:
        validation = Dataset.from_file(str(folder / "validation.arrow"))
    elif plan.dataset.validation_fraction:
        train, validation = _split(plan, train)
    columns = list(kind_of(plan).columns)
    fingerprint, largest_id = _scan(train.select_columns(columns))
    return PreparedData(
        train=train.select_columns(columns),
        validation=None if validation is None else validation.select_columns(columns),
        fingerprint=fingerprint,
        largest_id=largest_id,
        max_length=plan.training.max_length,
    )


def _split(plan: TrainingPlan, rows: Any) -> tuple[Any, Any]:
    """Split by source row, so that the responses of one conversation stay on one side."""
    sources = rows["source_row"]
    numbers = sorted(set(sources))
    count = round(len(numbers) * (plan.dataset.validation_fraction or 0.0))
    if not 0 < count < len(numbers):
        raise InvalidInputError(
            f"dataset.validation.fraction {plan.dataset.validation_fraction} of {len(numbers)} rows leaves "
            f"{len(numbers) - count} for training and {count} for validation; both need at least one"
        )
    chosen = set(random.Random(plan.training.seed).sample(numbers, count))
    held_out = [index for index, number in enumerate(sources) if number in chosen]
    kept = [index for index, number in enumerate(sources) if number not in chosen]
    return rows.select(kept), rows.select(held_out)


def _scan(rows: Any) -> tuple[str, int]:
    """Fingerprint and largest token id."""
    digest = hashlib.sha256()
    largest = 0
    for row in rows:
        for name, value in row.items():
            if name.endswith("_ids"):
                largest = max(largest, max(value, default=0))
            content = array("i", value).tobytes() if isinstance(value, list) else str(value).encode()
            digest.update(len(content).to_bytes(8))
            digest.update(content)
    return digest.hexdigest()[:16], largest


def _encode_source(
    plan: TrainingPlan, source: ResolvedSource, tokenizer: Any, path: Path, warn: Warn, limit: int | None
) -> None:
    counts = _Counts()
    encoder = Encoder(tokenizer, plan.objective.response_only)
    written = _write_rows(path, kind_of(plan).columns, _encode_rows(plan, source, encoder, limit, counts))
    counts.rewritten = encoder.rewritten
    _report(plan, source, counts, written, warn)


def _encode_rows(
    plan: TrainingPlan, source: ResolvedSource, encoder: Encoder, limit: int | None, counts: _Counts
) -> Iterator[Row]:
    kind = kind_of(plan)
    objective, length = plan.objective.type, plan.training.max_length
    format_name: str | None = None
    problems: list[str] = []
    for raw in read_rows(source, plan.dataset.split):
        if limit is not None and counts.rows == limit:
            break
        counts.rows += 1
        try:
            if raw.problem is not None:
                raise RowProblemError(raw.problem)
            if format_name is None:
                format_name = detect_format(objective, plan.dataset.format, raw.fields, source.uri)
            examples = parse_row(OBJECTIVES[objective].rows, format_name, raw.fields)
        except RowProblemError as problem:
            problems.append(_locate(raw, problem))
            continue
        if problems:
            continue
        for row in (row for example in examples for row in kind.encode(encoder, example)):
            cut = kind.cut(row, length)
            if cut is None:
                counts.emptied += 1
                continue
            counts.cut += kind.count(row) > length
            yield {"source_row": counts.rows, **cut}
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        raise InvalidInputError(f"dataset {source.uri}: {len(problems)} of {counts.rows} rows are broken: {shown}")


def _locate(raw: RawRow, problem: RowProblemError) -> str:
    return f"{raw.file} row {raw.number}: {problem}"


def _write_rows(path: Path, columns: dict[str, ColumnType], rows: Iterator[Row]) -> int:
    import pyarrow  # type: ignore[import-untyped]

    types = {"tokens": pyarrow.list_(pyarrow.int32()), "text": pyarrow.string(), "flag": pyarrow.bool_()}
    schema = pyarrow.schema(
        [("source_row", pyarrow.int64()), *((name, types[column]) for name, column in columns.items())]
    )
    written = 0
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        while batch := list(itertools.islice(rows, _BATCH)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
            written += len(batch)
    return written


def _report(plan: TrainingPlan, source: ResolvedSource, counts: _Counts, written: int, warn: Warn) -> None:
    length, loss = plan.training.max_length, kind_of(plan).loss
    if counts.rows == 0:
        raise InvalidInputError(f"dataset {source.uri}: holds no rows")
    if written == 0:
        raise InvalidInputError(
            f"dataset {source.uri}: training.maxLength {length} {loss} of all {counts.rows} rows: raise it, or shorten "
            "the rows"
        )
    if counts.emptied:
        warn(
            f"{counts.emptied} of {counts.rows} rows of {source.uri} are left out: training.maxLength {length} "
            f"{loss} of them"
        )
    if counts.cut:
        warn(f"{counts.cut} rows of {source.uri} are cut to training.maxLength {length}")
    if counts.rewritten:
        warn(
            f"the chat template renders earlier turns otherwise once later ones follow: {counts.rewritten} "
            f"conversations of {source.uri} became one row per response"
        )
