"""Datasets in S3, read from a real server process: Versity's gateway over a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.data.preview import preview
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.s3 import connect_s3
from tests.trainer.preparing import prepare


@pytest.fixture
def bucket(opened: None) -> Callable[[str, list[str]], None]:
    """``bucket(key, texts)`` writes a file of rows; the environment has what opens the bucket."""
    remote = connect_s3()

    def write(key: str, texts: list[str]) -> None:
        with remote.open_output_stream(f"tales/{key}") as file:
            file.write("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())

    return write


Bucket = Callable[[str, list[str]], None]


def _plan(make: Callable[..., TrainingPlan], location: str, **dataset: Any) -> TrainingPlan:
    source = ResolvedSource(uri=f"s3://{location}", kind="s3", location=location)
    return make(dataset={"source": source, "validation_fraction": None, **dataset})


def _texts(tokenizer: Any, rows: Any) -> list[str]:
    return [tokenizer.decode(ids).removesuffix(tokenizer.eos_token) for ids in rows["input_ids"]]


def test_a_file_is_copied_once_and_again_when_it_changes(
    bucket: Bucket, make: Callable[..., TrainingPlan], tokenizer: Any
) -> None:
    bucket("file/rows.jsonl", ["one", "two"])
    plan = _plan(make, "tales/file/rows.jsonl")
    copies = Path(plan.cache_directory) / "s3"
    first, _ = prepare(plan, tokenizer)
    assert _texts(tokenizer, first.train) == ["one", "two"]
    [copy] = copies.iterdir()
    written = (copy / "rows.jsonl").stat().st_mtime_ns
    again, _ = prepare(plan, tokenizer)
    assert again.fingerprint == first.fingerprint and (copy / "rows.jsonl").stat().st_mtime_ns == written
    assert str(preview(plan, 1)[0]).startswith("rows.jsonl row 1: ")
    bucket("file/rows.jsonl", ["one", "two", "three"])
    assert len(prepare(plan, tokenizer)[0].train) == 3
    assert len(list(copies.iterdir())) == 2


def test_a_folder_gives_its_files(bucket: Bucket, make: Callable[..., TrainingPlan], tokenizer: Any) -> None:
    bucket("folder/b.jsonl", ["second"])
    bucket("folder/a.jsonl", ["first"])
    bucket("held.jsonl", ["held out"])
    held_out = ResolvedSource(uri="s3://tales/held.jsonl", kind="s3", location="tales/held.jsonl")
    rows, _ = prepare(_plan(make, "tales/folder", validation_source=held_out), tokenizer)
    assert _texts(tokenizer, rows.train) == ["first", "second"]
    assert _texts(tokenizer, rows.validation) == ["held out"]


def test_what_is_not_there_and_what_is_closed(
    bucket: Bucket, make: Callable[..., TrainingPlan], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket("closed.jsonl", ["one"])
    with pytest.raises(InvalidInputError, match=r"dataset s3://tales/none\.jsonl: .*AWS_ACCESS_KEY_ID"):
        prepare(_plan(make, "tales/none.jsonl"), tokenizer)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InvalidInputError, match=r"dataset s3://tales/closed\.jsonl: .*AWS_SECRET_ACCESS_KEY"):
        prepare(_plan(make, "tales/closed.jsonl"), tokenizer)
