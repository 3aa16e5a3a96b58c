"""The prepared dataset: rows read, checked, encoded, cut and written as Arrow files that every rank maps."""

import hashlib
import os
import random
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.plan import DatasetPlan, ResolvedSource, TrainingPlan
from finetune_trainer.data.encode import IGNORED, Encoder
from finetune_trainer.data.formats import RowProblemError, detect_format, parse_row
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
    """Rows longer than maxLength."""
    emptied: int = 0
    """Rows left out: the cut took all of their response."""
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
    """datasets.Dataset objects with ``input_ids`` and ``labels``."""

    train: Any
    validation: Any
    """None without validation data."""
    fingerprint: str
    """Hash of the training rows' ids and labels in order: the same plan over a changed file is another training."""
    largest_id: int


def load_data(plan: TrainingPlan, folder: Path) -> PreparedData:
    """Map what ``prepare_data`` wrote, split by the plan. Raises: InvalidInputError when a side would be empty."""
    from datasets import Dataset

    train = Dataset.from_file(str(folder / "train.arrow"))
    validation = None
    if plan.dataset.validation_source is not None:
        validation = Dataset.from_file(str(folder / "validation.arrow"))
    elif plan.dataset.validation_fraction:
        train, validation = _split(plan, train)
    columns = ["input_ids", "labels"]
    fingerprint, largest_id = _scan(train)
    return PreparedData(
        train=train.select_columns(columns),
        validation=None if validation is None else validation.select_columns(columns),
        fingerprint=fingerprint,
        largest_id=largest_id,
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
        input_ids, labels = row["input_ids"], row["labels"]
        digest.update(array("i", [len(input_ids), *input_ids, *labels]).tobytes())
        largest = max(largest, max(input_ids))
    return digest.hexdigest()[:16], largest


def _encode_source(
    plan: TrainingPlan, source: ResolvedSource, tokenizer: Any, path: Path, warn: Warn, limit: int | None
) -> None:
    counts = _Counts()
    encoder = Encoder(tokenizer, plan.objective.response_only)
    rows = _encode_rows(plan.dataset, source, encoder, plan.training.max_length, limit, counts)
    written = _write_rows(path, rows)
    counts.rewritten = encoder.rewritten
    _report(plan, source, counts, written, warn)


def _encode_rows(
    dataset: DatasetPlan,
    source: ResolvedSource,
    encoder: Encoder,
    max_length: int,
    limit: int | None,
    counts: _Counts,
) -> Iterator[tuple[int, list[int], list[int]]]:
    format_name: str | None = None
    problems: list[str] = []
    for raw in read_rows(source, dataset.split):
        if limit is not None and counts.rows == limit:
            break
        counts.rows += 1
        try:
            if raw.problem is not None:
                raise RowProblemError(raw.problem)
            if format_name is None:
                format_name = detect_format(dataset.format, raw.fields, source.uri)
            example = parse_row(format_name, raw.fields)
        except RowProblemError as problem:
            problems.append(_locate(raw, problem))
            continue
        if problems:
            continue
        for row in encoder.encode(example):
            counts.cut += len(row.input_ids) > max_length
            input_ids, labels = row.input_ids[:max_length], row.labels[:max_length]
            # The first token is never predicted, so a label there alone trains nothing.
            if all(label == IGNORED for label in labels[1:]):
                counts.emptied += 1
                continue
            yield counts.rows, input_ids, labels
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        raise InvalidInputError(f"dataset {source.uri}: {len(problems)} of {counts.rows} rows are broken: {shown}")


def _locate(raw: RawRow, problem: RowProblemError) -> str:
    return f"{raw.file} row {raw.number}: {problem}"


def _write_rows(path: Path, rows: Iterator[tuple[int, list[int], list[int]]]) -> int:
    import pyarrow  # type: ignore[import-untyped]

    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("source_row", pyarrow.int64()), ("input_ids", tokens), ("labels", tokens)])
    written = 0
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        batch: list[tuple[int, list[int], list[int]]] = []
        for row in rows:
            batch.append(row)
            written += 1
            if len(batch) == _BATCH:
                writer.write_batch(_record_batch(batch, schema))
                batch = []
        if batch:
            writer.write_batch(_record_batch(batch, schema))
    return written


def _record_batch(batch: list[tuple[int, list[int], list[int]]], schema: Any) -> Any:
    import pyarrow

    return pyarrow.RecordBatch.from_arrays(
        [pyarrow.array(column, field.type) for column, field in zip(zip(*batch, strict=True), schema, strict=True)],
        schema=schema,
    )


def _report(plan: TrainingPlan, source: ResolvedSource, counts: _Counts, written: int, warn: Warn) -> None:
    length = plan.training.max_length
    if counts.rows == 0:
        raise InvalidInputError(f"dataset {source.uri}: holds no rows")
    if written == 0:
        raise InvalidInputError(
            f"dataset {source.uri}: training.maxLength {length} cuts off the whole response of all {counts.rows} rows: "
            "raise it, or shorten the prompts"
        )
    if counts.emptied:
        warn(
            f"{counts.emptied} of {counts.rows} rows of {source.uri} are left out: training.maxLength {length} cuts "
            "off their whole response"
        )
    if counts.cut > counts.emptied:
        warn(f"{counts.cut - counts.emptied} rows of {source.uri} are cut to training.maxLength {length}")
    if counts.rewritten:
        warn(
            f"the chat template renders earlier turns otherwise once later ones follow: {counts.rewritten} "
            f"conversations of {source.uri} became one row per response"
        )
