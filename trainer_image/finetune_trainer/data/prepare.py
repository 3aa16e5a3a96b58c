"""The prepared dataset: rows read, cleaned, encoded, cut, mixed and split once, as Arrow files that every rank maps."""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import CleaningPlan, TrainingPlan
from finetune_trainer.data.cache import name_content
from finetune_trainer.data.choose import decide_length, draw_mixture, split_rows
from finetune_trainer.data.clean import Deduplicator
from finetune_trainer.data.encode import Encoder
from finetune_trainer.data.ingest import Origin, ingest, write_rows
from finetune_trainer.data.rows import Row, kind_of
from finetune_trainer.data.s3 import fetch_sources
from finetune_trainer.data.stream import read_head, require_streamable, stream_rows
from finetune_trainer.data.tally import BEYOND, CUT, HELD_OUT, REWRITTEN, UNTRAINED, Tally
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.files import build_once

Tell = Callable[[str, str], None]
"""Takes an event's name and message."""

_HEAD = 256
"""Rows of a stream that are encoded before training begins."""


@dataclass(frozen=True)
class PreparedData:
    """datasets.Dataset objects with the columns of the objective's kind of rows; streamed, ``train`` is an
    IterableDataset without an end."""

    train: Any
    validation: Any
    """None without validation data."""
    fingerprint: str
    """Hash of the training rows in order: the same plan over a changed file is another training."""
    largest_id: int
    max_length: int
    """Tokens that no row exceeds: ``training.max_length``, or what was decided for it."""


def prepare_data(plan: TrainingPlan, location: str, tokenizer: Any, tell: Tell) -> str:
    """Encode the training and validation rows, unless the cache has them; returns the name of their folder there.

    Beside the rows stands ``report.json`` with what became of the rows of each source. What it says of them is told
    each time: rows are never left out in silence.

    Raises: InvalidInputError naming file, row and field of the first broken rows.
    """
    if plan.dataset.streaming:
        require_streamable(plan)
    plan = fetch_sources(plan)
    positions = _find_positions(plan, location)
    name = name_content(plan, tokenizer, positions)
    folder = _locate(plan, name)
    build = partial(_build_validation, plan, tokenizer, name) if plan.dataset.streaming else None
    build_once(folder, build or partial(_build, plan, tokenizer, positions))
    for event, message in _read_report(folder)["messages"]:
        tell(event, message)
    return name


def load_data(plan: TrainingPlan, name: str, tokenizer: Any, tell: Tell) -> PreparedData:
    """Map what ``prepare_data`` wrote; what is streamed is told of as it passes."""
    from datasets import Dataset

    folder = _locate(plan, name)
    report = _read_report(folder)
    validation = folder / "validation.arrow"
    if plan.dataset.streaming:
        train = stream_rows(fetch_sources(plan), Encoder(tokenizer, plan.objective.response_only), tell)
    else:
        train = Dataset.from_file(str(folder / "train.arrow"))
    return PreparedData(
        train=train,
        validation=Dataset.from_file(str(validation)) if validation.exists() else None,
        fingerprint=report["fingerprint"],
        largest_id=report["largestId"],
        max_length=report["maxLength"],
    )


def _locate(plan: TrainingPlan, name: str) -> Path:
    return Path(plan.cache_directory) / "datasets" / name


def _read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def _find_positions(plan: TrainingPlan, location: str) -> int | None:
    """Tokens that the model has positions for, as far as its configuration says."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        location, revision=plan.model.revision, trust_remote_code=plan.model.trust_remote_code
    )
    return getattr(config.get_text_config(), "max_position_embeddings", None)


@dataclass
class _Part:
    """The encoded rows of one source."""

    origin: Origin
    rows: Any
    """datasets.Dataset with the columns of ``ingest``."""
    tally: Tally
    fitting: list[int] = field(default_factory=list)
    """Numbers of the rows that the decided length leaves something of."""

    def of_fitting(self, column: str) -> list[Any]:
        values = self.rows[column][:]
        return [values[index] for index in self.fitting]


_Pick = tuple[_Part, list[int]]
"""Rows of a part by their numbers."""


def _build(plan: TrainingPlan, tokenizer: Any, positions: int | None, folder: Path) -> None:
    """Fill ``folder``: train.arrow, validation.arrow and report.json."""
    dataset, messages = plan.dataset, list[tuple[str, str]]()
    encoder = Encoder(tokenizer, plan.objective.response_only)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        read = partial(_read, plan, encoder, Deduplicator(dataset.cleaning), Path(scratch))
        # First, so that with dedup on it is the training rows that are left out where they repeat validation rows.
        held_out = dataset.validation_source and read(Origin(dataset.validation_source, dataset.split, dataset.format))
        main = read(Origin(dataset.source, dataset.split, dataset.format, dataset.max_samples))
        mixtures = [read(Origin(mixture.source, mixture.split, mixture.format)) for mixture in dataset.mixtures]
        parts = [main, *mixtures, *([held_out] if held_out else [])]

        length = plan.training.max_length or _decide_length(plan, main, positions, messages)
        for part in parts:
            _fit(plan, part, length)
        _require_stop(plan, tokenizer, [stop for part in (main, *mixtures) for stop in part.of_fitting("stop")], length)
        train, validation = _split(plan, main, held_out or None, messages)
        train += _mix(plan, mixtures, len(train[0][1]), validation, messages)

        scan = _Scan()
        write_rows(folder / "train.arrow", kind_of(plan).columns, scan.read(_cut(plan, train, length)))
        fingerprint = scan.digest.hexdigest()[:16]
        if validation:
            write_rows(folder / "validation.arrow", kind_of(plan).columns, scan.read(_cut(plan, validation, length)))
    report = {
        "train": sum(len(numbers) for _, numbers in train),
        "validation": sum(len(numbers) for _, numbers in validation),
        "maxLength": length,
        "fingerprint": fingerprint,
        "largestId": scan.largest_id,
        "sources": [part.tally.to_json() for part in parts],
        "messages": [*messages, *(message for part in parts for message in _describe(plan, part.tally, length))],
    }
    _write_report(folder, report)


def _build_validation(plan: TrainingPlan, tokenizer: Any, name: str, folder: Path) -> None:
    """Fill ``folder`` for rows that are streamed: validation.arrow and report.json. The first rows are looked at."""
    dataset, length = plan.dataset, plan.training.max_length
    encoder = Encoder(tokenizer, plan.objective.response_only)
    _require_stop(plan, tokenizer, [row["stop"] for row in read_head(plan, encoder, _HEAD)], length)
    parts: list[_Part] = []
    if dataset.validation_source is not None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            origin = Origin(dataset.validation_source, dataset.split, dataset.format)
            part = _read(plan, encoder, Deduplicator(dataset.cleaning), Path(scratch), origin)
            _fit(plan, part, length)
            write_rows(folder / "validation.arrow", kind_of(plan).columns, _cut(plan, [(part, part.fitting)], length))
            parts.append(part)
    report = {
        "maxLength": length,
        # The name has the sources' content in it. Any token may come.
        "fingerprint": name[:16],
        "largestId": len(tokenizer) - 1,
        "sources": [part.tally.to_json() for part in parts],
        "messages": [message for part in parts for message in _describe(plan, part.tally, length)],
    }
    _write_report(folder, report)


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")


def _read(plan: TrainingPlan, encoder: Encoder, duplicates: Deduplicator, scratch: Path, origin: Origin) -> _Part:
    """Raises: InvalidInputError when cleaning, or having nothing to train, leaves no row."""
    from datasets import Dataset

    path = scratch / f"{len(list(scratch.iterdir()))}.arrow"
    tally = ingest(plan, origin, encoder, duplicates, path)
    rows = Dataset.from_file(str(path))
    if len(rows) == 0 and tally.cleaned:
        raise InvalidInputError(f"dataset.cleaning leaves no row: {tally.describe_cleaning()}; relax it")
    if len(rows) == 0:
        raise InvalidInputError(
            f"dataset {tally.uri}: no token of its {tally.read} rows would be trained: the chat template writes nothing "
            "of the assistant's turns; set model.chatTemplate, or objective.responseOnly: false"
        )
    return _Part(origin, rows, tally)


def _decide_length(plan: TrainingPlan, main: _Part, positions: int | None, messages: list[tuple[str, str]]) -> int:
    room = plan.objective.generation.max_tokens if plan.objective.generation else 0
    length = decide_length(main.rows["length"][:], room, positions)
    of_answer = f", with {room} for an answer" if room else ""
    messages.append(
        (
            "length",
            f"training.maxLength is {length}: the 95th percentile of {len(main.rows)} rows{of_answer}, rounded up to a "
            "multiple of 64 within the model's positions",
        )
    )
    return length


def _fit(plan: TrainingPlan, part: _Part, length: int) -> None:
    """Raises: InvalidInputError when no row fits ``length``."""
    measures = part.rows.select_columns(["length", "least", "place"])
    part.fitting = [number for number, row in enumerate(measures) if part.tally.fits(row, length)]
    if not part.fitting:
        raise InvalidInputError(
            f"dataset {part.tally.uri}: training.maxLength {length} {kind_of(plan).loss} of all {part.tally.read} rows: "
            "raise it, or shorten the rows"
        )


def _require_stop(plan: TrainingPlan, tokenizer: Any, lengths: list[int | None], length: int) -> None:
    """Raises: InvalidInputError when the model would learn answers and never their end."""
    if plan.objective.type == "pretrain" or OBJECTIVES[plan.objective.type].generates:
        return
    stops = [stop for stop in lengths if stop is not None]
    if not stops:
        raise InvalidInputError(
            f"no row trains a token that ends an answer ({tokenizer.eos_token}, or the chat template's end of turn), so "
            "the model would never stop: set model.chatTemplate to one that ends the assistant's turns, or "
            "objective.responseOnly: true"
        )
    if min(stops) > length:
        raise InvalidInputError(
            f"training.maxLength {length} cuts off the end of every answer, so the model would never stop: raise it to "
            f"{min(stops)} at least"
        )


def _split(
    plan: TrainingPlan, main: _Part, held_out: _Part | None, messages: list[tuple[str, str]]
) -> tuple[list[_Pick], list[_Pick]]:
    """Training and validation rows; no text stands on both sides, or it is said."""
    if held_out is not None:
        texts = set(held_out.of_fitting("key"))
        shared = sum(key in texts for key in main.of_fitting("key"))
        if shared:
            messages.append(
                (
                    "warning",
                    f"{shared} rows of {main.tally.uri} stand in {held_out.tally.uri} too: its loss is no measure "
                    "of unseen rows; dataset.cleaning.dedup: exact leaves them out of the training",
                )
            )
        return [(main, main.fitting)], [(held_out, held_out.fitting)]
    if not plan.dataset.validation_fraction:
        return [(main, main.fitting)], []
    source_rows = main.rows["source_row"][:]
    chosen = split_rows(plan, main.of_fitting("source_row"), main.of_fitting("key"))
    kept = [number for number in main.fitting if source_rows[number] not in chosen]
    return [(main, kept)], [(main, [number for number in main.fitting if source_rows[number] in chosen])]


def _mix(
    plan: TrainingPlan, mixtures: list[_Part], count: int, validation: list[_Pick], messages: list[tuple[str, str]]
) -> list[_Pick]:
    """Rows of each mixture, ``weight`` for each of ``count`` training rows, none of which is a validation row."""
    barred = {key for part, numbers in validation for key in part.rows.select(numbers)["key"][:]}
    picks = []
    for number, (mixture, part) in enumerate(zip(plan.dataset.mixtures, mixtures, strict=True)):
        uri, free = part.tally.uri, []
        for index, key, place in zip(part.fitting, part.of_fitting("key"), part.of_fitting("place"), strict=True):
            if key in barred:
                part.tally.count(HELD_OUT, place)
            else:
                free.append(index)
        wanted = round(mixture.weight * count)
        if not free or not wanted:
            raise InvalidInputError(
                f"dataset.mixtures {uri}: weight {mixture.weight} of {count} training rows asks for {wanted} of its "
                f"{len(free)} rows, so nothing is mixed in: raise the weight, or leave the mixture out"
            )
        if wanted > len(free):
            messages.append(
                (
                    "warning",
                    f"dataset.mixtures {uri}: weight {mixture.weight} asks for {wanted} rows and it has "
                    f"{len(free)}: each is trained {wanted // len(free)} or {-(-wanted // len(free))} times an epoch",
                )
            )
        drawn = draw_mixture(len(free), wanted, f"{plan.training.seed}/{number}")
        picks.append((part, [free[index] for index in drawn]))
    return picks


def _cut(plan: TrainingPlan, picks: list[_Pick], length: int) -> Iterator[Row]:
    kind = kind_of(plan)
    for part, numbers in picks:
        for row in part.rows.select(numbers).select_columns(list(kind.columns)):
            yield kind.cut(row, length)


class _Scan:
    """Fingerprint and largest token id of rows that pass by."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.largest_id = 0

    def read(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            for name, value in row.items():
                if name.endswith("_ids"):
                    self.largest_id = max(self.largest_id, max(value, default=0))
                content = array("i", value).tobytes() if isinstance(value, list) else str(value).encode()
                self.digest.update(len(content).to_bytes(8))
                self.digest.update(content)
            yield row


def _describe(plan: TrainingPlan, tally: Tally, length: int) -> Iterator[tuple[str, str]]:
    """What has to be said of a source."""
    if plan.dataset.cleaning != CleaningPlan():
        yield "cleaning", tally.describe_cleaning()
    fates, of_rows = tally.fates, f"of {tally.read} rows of {tally.uri} are left out:"
    if fates[UNTRAINED]:
        yield "warning", f"{fates[UNTRAINED]} {of_rows} no token of theirs would be trained"
    if fates[BEYOND]:
        yield "warning", f"{fates[BEYOND]} {of_rows} training.maxLength {length} {kind_of(plan).loss} of them"
    if fates[HELD_OUT]:
        yield "warning", f"{fates[HELD_OUT]} {of_rows} they are validation rows too"
    if fates[CUT]:
        yield "warning", f"{fates[CUT]} rows of {tally.uri} are cut to training.maxLength {length}"
    if fates[REWRITTEN]:
        yield (
            "warning",
            f"the chat template renders earlier turns otherwise once later ones follow: {fates[REWRITTEN]} "
            f"conversations of {tally.uri} became one row per response",
        )
