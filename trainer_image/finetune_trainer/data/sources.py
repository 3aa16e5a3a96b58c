"""Reads the rows of a dataset source, each with the place it came from."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.plan import ResolvedSource
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.files import hash_file, hash_folder
from finetune_trainer.package_file import find_package_file

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class RawRow:
    """One row as it was read. ``problem`` is set instead of ``fields`` when it couldn't be."""

    file: str
    number: int
    """Row of the file, from 1."""
    fields: dict[str, Any]
    problem: str | None = None


def read_rows(source: ResolvedSource, split: str) -> Iterator[RawRow]:
    """All rows of ``source`` in order; files of a folder by name.

    Raises: InvalidInputError when the source isn't there or can't be read as a dataset at all.
    """
    if source.kind == "hf":
        for number, fields in enumerate(_load_hub(source, split), start=1):
            yield _arrow_row(source.location, number, fields)
        return
    path = _find_path(source)
    if path.is_dir():
        yield from _read_folder(source, path, split)
    else:
        yield from _read_file(source, path)


def hash_source(source: ResolvedSource, split: str) -> str:
    """Hash of the rows' content. Raises: InvalidInputError when the source isn't there."""
    if source.kind == "hf":
        # Of the builder's configuration and the commit of its files.
        return str(_load_hub(source, split)._fingerprint)
    path = _find_path(source)
    return hash_folder(path) if path.is_dir() else hash_file(path)


def _find_path(source: ResolvedSource) -> Path:
    path = find_package_file(source) if source.kind == "package" else Path(source.location)
    if not path.exists():
        raise InvalidInputError(f"dataset {source.uri}: {path} does not exist")
    return path


def _arrow_row(file: str, number: int, fields: dict[str, Any]) -> RawRow:
    """Arrow gives every object the keys of all others, with nulls: a tool's schema would name the other tools' fields."""
    return RawRow(file, number, {name: _without_nulls(value) for name, value in fields.items()})


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _load_hub(source: ResolvedSource, split: str) -> Any:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(source.location, split=split, token=os.environ.get(names.ENV_HF_TOKEN))
    except (FileNotFoundError, ValueError, HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status >= 500:
            raise
        raise InvalidInputError(f"dataset {source.uri}, split {split}: {str(error).splitlines()[0]}") from error


def _read_folder(source: ResolvedSource, folder: Path, split: str) -> Iterator[RawRow]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        import datasets

        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise InvalidInputError(f"dataset {source.uri}: no split {split!r}, it has {', '.join(sorted(saved))}")
            saved = saved[split]
        for number, fields in enumerate(saved, start=1):
            yield _arrow_row(folder.name, number, fields)
        return
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise InvalidInputError(f"dataset {source.uri}: no {', '.join(SUFFIXES)} file in the folder {folder}")
    for file in files:
        yield from _read_file(source, file)


def _read_file(source: ResolvedSource, path: Path) -> Iterator[RawRow]:
    readers = {
        ".json": _read_json,
        ".jsonl": _read_json_lines,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".txt": _read_text,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise InvalidInputError(f"dataset {source.uri}: {path.name} is none of {', '.join(SUFFIXES)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"dataset {source.uri}: {path.name} is not UTF-8 text: {error}") from error


def _row(path: Path, number: int, value: object) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(path.name, number, {}, f"is a {type(value).__name__}, not an object with fields")
    return RawRow(path.name, number, value)


def _read_json(path: Path) -> Iterator[RawRow]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"dataset file {path.name}: not JSON at line {error.lineno}: {error.msg}; one object per line is .jsonl"
        ) from error
    if not isinstance(document, list):
        raise InvalidInputError(f"dataset file {path.name}: holds a {type(document).__name__}, not a list of objects")
    for number, value in enumerate(document, start=1):
        yield _row(path, number, value)


def _read_json_lines(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                yield RawRow(path.name, number, {}, f"is not JSON: {error.msg} at column {error.colno}")
                continue
            yield _row(path, number, value)


def _read_csv(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines)
        header = next(rows, None)
        if header is None:
            return
        for number, values in enumerate(rows, start=1):
            if len(values) != len(header):
                yield RawRow(path.name, number, {}, f"has {len(values)} values, the header has {len(header)}")
            else:
                yield RawRow(path.name, number, dict(zip(header, values, strict=True)))


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InvalidInputError(f"dataset file {path.name}: not Parquet: {error}") from error
    number = 0
    for batch in table.iter_batches():
        for fields in batch.to_pylist():
            number += 1
            yield _arrow_row(path.name, number, fields)


def _read_text(path: Path) -> Iterator[RawRow]:
    """One row per line; blank lines only separate."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield RawRow(path.name, number, {"text": line.rstrip("\n")})
