"""Streamed rows: in the training, after a stop, and what they don't go with."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from tests.trainer.conftest import adapter_bytes
from tests.trainer.plans import file_source
from tests.trainer.preparing import prepare, prepared_folders, write_rows
from tests.trainer.running import Recorder, losses, run

STREAMED = {"streaming": True, "validation_fraction": None}


def _streamed(make: Callable[..., TrainingPlan], root: str = "run", **changes: Any) -> TrainingPlan:
    training = {"epochs": None, "max_steps": 9, **changes.pop("training", {})}
    return make(root, dataset={**STREAMED, **changes.pop("dataset", {})}, training=training, **changes)


def test_a_streamed_run_resumes_where_it_stopped(make: Callable[..., TrainingPlan]) -> None:
    """15 rows at 4 a step: step 8 ends in the third pass over the data. Dropout is on."""
    whole, stopped = _streamed(make, "whole"), _streamed(make, "stopped")
    run(whole)
    run(stopped)
    shutil.rmtree(Path(stopped.checkpoint.directory) / "checkpoint-9")
    recorder = Recorder()
    run(stopped, recorder)
    assert recorder.messages("resumed") == ["going on from the checkpoint of step 8"]
    assert losses(stopped) == losses(whole) and adapter_bytes(stopped) == adapter_bytes(whole)


def test_every_row_passes_once_before_any_comes_again(
    make: Callable[..., TrainingPlan], tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"text": f"tale {number}"} for number in range(30)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    held_out = file_source(write_rows(tmp_path / "held.jsonl", [{"text": "held out"}]))
    plan = _streamed(make, data=data, dataset={"validation_source": held_out})
    streamed, _ = prepare(plan, tokenizer)
    again, _ = prepare(plan, tokenizer)
    first, second = (
        [tokenizer.decode(row["input_ids"]) for row in islice(data.train, 60)] for data in (streamed, again)
    )
    assert first == second
    expected = [f"tale {number}{tokenizer.eos_token}" for number in range(30)]
    assert sorted(first[:30]) == sorted(first[30:]) == sorted(expected)
    assert first[:30] != first[30:] and first[:30] != expected and streamed.fingerprint == again.fingerprint
    assert tokenizer.decode(streamed.validation[0]["input_ids"]).startswith("held out")
    [folder] = prepared_folders(plan)
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "validation.arrow"]
    write_rows(data, rows[1:])
    assert prepare(plan, tokenizer)[0].fingerprint != streamed.fingerprint


def test_what_a_stream_leaves_out_is_told_as_it_passes(
    make: Callable[..., TrainingPlan], tokenizer: Any, tmp_path: Path
) -> None:
    texts = ["short", "word " * 300, "short", "one more"]
    data = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    streamed, told = prepare(_streamed(make, data=data, dataset={"cleaning": {"dedup": "exact"}}), tokenizer)
    assert told == []
    assert len(list(islice(streamed.train, 9))) == 9
    assert sorted(told) == [
        ("warning", f"file://{data}: cutToMaxLength, from rows.jsonl row 2, 302 tokens on"),
        ("warning", f"file://{data}: exactDuplicates, from rows.jsonl row 3, of rows.jsonl row 1 on"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"epochs": 1.0, "max_steps": None}}, r"training\.epochs: .*set training\.maxSteps"),
        ({"training": {"max_length": 0}}, r"training\.maxLength auto"),
        ({"training": {"packing": "bfd"}}, r"training\.packing"),
        ({"dataset": {"validation_fraction": 0.1}}, r"dataset\.validation\.fraction: use dataset\.validation\.source"),
        ({"objective": {"type": "dpo"}}, r"objective\.type dpo: use sft or pretrain"),
    ],
)
def test_what_needs_all_rows_at_once_is_refused(
    make: Callable[..., TrainingPlan], tokenizer: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"dataset.streaming does not go with {message}"):
        prepare(_streamed(make, **changes), tokenizer)
