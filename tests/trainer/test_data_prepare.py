"""Cleaning, mixtures, the split, the decided length and the cache of prepared rows."""

import copy
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import TrainingPlan
from finetune_trainer.data.choose import decide_length
from finetune_trainer.data.clean import Deduplicator, text_of
from finetune_trainer.data.formats import Text
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.files import build_once
from tests.trainer import templates
from tests.trainer.plans import file_source
from tests.trainer.preparing import prepare, prepared_folders, read_report, write_rows

Make = Callable[..., TrainingPlan]
ALL = {"validation_fraction": None}


def _texts(tokenizer: Any, rows: Any) -> list[str]:
    return [tokenizer.decode(ids).removesuffix(tokenizer.eos_token) for ids in rows["input_ids"]]


def _essay(seed: int, words: int = 60) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("abcdefghij", k=4)) for _ in range(words)]


def test_exact_duplicates_are_left_out_and_reported(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    texts = ["Once upon a time", "A second tale", "ONCE  upon\na time ", "\uff2fnce upon a time"]
    data = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    plan = make(data=data, dataset={**ALL, "cleaning": {"dedup": "exact"}})
    rows, told = prepare(plan, tokenizer)
    assert _texts(tokenizer, rows.train) == texts[:2]
    assert told == [("cleaning", f"cleaned file://{data}: of 4 rows 2 exact duplicates left out")]
    [source] = read_report(plan)["sources"]
    examples = ["rows.jsonl row 3, of rows.jsonl row 1", "rows.jsonl row 4, of rows.jsonl row 1"]
    assert source["exactDuplicates"] == {"rows": 2, "examples": examples}


@pytest.mark.parametrize(("dedup", "kept"), [("none", 4), ("exact", 4), ("minhash", 2)])
def test_near_duplicates(make: Make, tokenizer: Any, tmp_path: Path, dedup: str, kept: int) -> None:
    first, other = _essay(1), _essay(2)
    rows = [first, other, [*first[:-1], "else"], [*other, "more"]]
    data = write_rows(tmp_path / "rows.jsonl", [{"text": " ".join(words)} for words in rows])
    plan = make(data=data, dataset={**ALL, "cleaning": {"dedup": dedup}}, training={"max_length": 512})
    prepared, _ = prepare(plan, tokenizer)
    assert _texts(tokenizer, prepared.train) == [" ".join(words) for words in rows[:kept]]


def test_minhash_agrees_with_counted_overlaps(make: Make) -> None:
    """Rows whose 5-grams overlap far above the threshold are found, those far below are not."""
    finder = Deduplicator(make(dataset={"cleaning": {"dedup": "minhash", "threshold": 0.7}}).dataset.cleaning)
    for number in range(20):
        words = _essay(number, 200)
        assert finder.find(" ".join(words), f"{number}") is None
        assert finder.find(" ".join([*words[:-3], "x", "y", "z"]), "near") == ("near", f"{number}")
        assert finder.find(" ".join([*words[:60], *_essay(number + 1000, 140)]), f"{number} far") is None


def test_lengths_are_cleaned_in_tokens(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "a" + " b" * words} for words in (1, 4, 50, 9)])
    plan = make(data=data, dataset={**ALL, "cleaning": {"min_length": 5, "max_length": 20}})
    rows, told = prepare(plan, tokenizer)
    assert [len(ids) for ids in rows.train["input_ids"]] == [6, 11]
    [(event, message)] = told
    assert event == "cleaning" and message.endswith(
        "of 4 rows 1 shorter than dataset.cleaning.minLength, 1 longer than dataset.cleaning.maxLength left out"
    )
    assert read_report(plan)["sources"][0]["tooLong"]["examples"] == ["rows.jsonl row 3, 52 tokens"]
    with pytest.raises(InvalidInputError, match=r"dataset\.cleaning leaves no row: cleaned .* 4 shorter .*; relax it"):
        prepare(make(data=data, dataset={**ALL, "cleaning": {"min_length": 500}}), tokenizer)


def test_duplicates_stay_on_one_side_of_the_split(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    texts = [f"Tale {number % 10} is told" for number in range(40)]
    texts[7] = texts[7].upper()
    data = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    rows, _ = prepare(make(data=data, dataset={"validation_fraction": 0.3}), tokenizer)
    train, validation = (
        {text_of(Text(text)) for text in _texts(tokenizer, side)} for side in (rows.train, rows.validation)
    )
    assert len(rows.train) == 28 and len(rows.validation) == 12
    assert not train & validation and len(train | validation) == 10


def test_a_split_that_duplicates_forbid_is_refused(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "always the same"}] * 10)
    with pytest.raises(InvalidInputError, match=r"of 10 rows, 9 of them duplicates that stay together, leaves 10 .* 0"):
        prepare(make(data=data, dataset={"validation_fraction": 0.3}), tokenizer)


def test_training_rows_that_stand_in_the_validation_source(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in ("one", "two", "three")])
    held_out = file_source(write_rows(tmp_path / "held.jsonl", [{"text": text} for text in ("TWO", "four")]))
    dataset = {**ALL, "validation_source": held_out}
    rows, [(event, message)] = prepare(make(data=data, dataset=dataset), tokenizer)
    assert event == "warning" and message.startswith(f"1 rows of file://{data} stand in {held_out.uri} too")
    assert len(rows.train) == 3 and len(rows.validation) == 2
    rows, _ = prepare(make(data=data, dataset={**dataset, "cleaning": {"dedup": "exact"}}), tokenizer)
    assert _texts(tokenizer, rows.train) == ["one", "three"]


def _mixed(
    make: Make, tmp_path: Path, weight: float, seed: int = 7, mixed: int = 20, root: str = "run", **dataset: Any
) -> TrainingPlan:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": f"main {number}"} for number in range(12)])
    other = write_rows(
        tmp_path / "other.jsonl", [{"prompt": "mix", "completion": f" {number}"} for number in range(mixed)]
    )
    mixture = {"source": file_source(other), "format": "auto", "weight": weight}
    return make(root, data, dataset={**ALL, "mixtures": (mixture,), **dataset}, training={"seed": seed})


def test_a_mixture_gives_its_weight_in_rows(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    rows, told = prepare(_mixed(make, tmp_path, 0.5), tokenizer)
    texts = _texts(tokenizer, rows.train)
    assert texts[:12] == [f"main {number}" for number in range(12)]
    assert len(texts) == 18 and len(set(texts)) == 18 and not told
    assert all(text.startswith("mix ") for text in texts[12:])
    again, _ = prepare(_mixed(make, tmp_path, 0.5, root="again"), tokenizer)
    other, _ = prepare(_mixed(make, tmp_path, 0.5, seed=8), tokenizer)
    assert rows.fingerprint == again.fingerprint != other.fingerprint


def test_a_mixture_that_runs_out_starts_again(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    rows, [(event, message)] = prepare(_mixed(make, tmp_path, 1.0, mixed=5), tokenizer)
    assert event == "warning" and "asks for 12 rows and it has 5: each is trained 2 or 3 times an epoch" in message
    assert sorted(Counter(_texts(tokenizer, rows.train)[12:]).values()) == [2, 2, 2, 3, 3]


def test_a_mixture_of_nothing_is_refused(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"dataset\.mixtures .* weight 0\.01 of 12 training rows asks for 0"):
        prepare(_mixed(make, tmp_path, 0.01), tokenizer)


def test_a_mixture_brings_no_validation_row_into_the_training(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    plan = _mixed(make, tmp_path, 5.0, validation_fraction=0.25)
    mixture = plan.dataset.mixtures[0].model_copy(update={"source": plan.dataset.source, "weight": 1.0})
    plan = plan.model_copy(update={"dataset": plan.dataset.model_copy(update={"mixtures": (mixture,)})})
    rows, [(_, message)] = prepare(plan, tokenizer)
    train, validation = _texts(tokenizer, rows.train), _texts(tokenizer, rows.validation)
    assert len(train) == 18 and set(Counter(train).values()) == {2} and not set(train) & set(validation)
    assert "3 of 12 rows" in message and "they are validation rows too" in message


def test_the_length_is_the_95th_percentile(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "a" + " b" * 68}] * 19 + [{"text": "a" + " b" * 500}])
    rows, told = prepare(make(data=data, dataset=ALL, training={"max_length": 0}), tokenizer)
    assert rows.max_length == 128 and max(map(len, rows.train["input_ids"])) == 128
    [(event, length), (_, cut)] = told
    assert event == "length" and length.startswith("training.maxLength is 128: the 95th percentile of 20 rows")
    assert cut == f"1 rows of file://{data} are cut to training.maxLength 128"


@pytest.mark.parametrize(
    ("lengths", "extra", "positions", "expected"),
    [
        (range(1, 101), 0, None, 128),
        ([64] * 95 + [900] * 5, 0, None, 64),
        ([64] * 94 + [900] * 6, 0, None, 960),
        ([64] * 94 + [900] * 6, 0, 512, 512),
        ([10], 256, 2048, 320),
    ],
)
def test_decided_lengths(lengths: Any, extra: int, positions: int | None, expected: int) -> None:
    assert decide_length(list(lengths), extra, positions) == expected


def test_a_run_that_would_never_learn_to_stop_is_refused(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello my dear old friend"}]
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}] * 3)
    whole = prepare(make(data=data, dataset=ALL), tokenizer)[0].train["input_ids"][0]
    with pytest.raises(InvalidInputError, match=r"cuts off the end of every answer.*raise it to") as caught:
        prepare(make(data=data, dataset=ALL, training={"max_length": len(whole) - 3}), tokenizer)
    enough = int(str(caught.value).split("raise it to ")[1].split(" ")[0])
    rows, _ = prepare(make(data=data, dataset=ALL, training={"max_length": enough}), tokenizer)
    assert rows.train[0]["labels"][-1] == tokenizer.eos_token_id
    endless = copy.deepcopy(tokenizer)
    endless.chat_template = templates.WITHOUT_END
    with pytest.raises(InvalidInputError, match=r"no row trains a token that ends an answer.*set model\.chatTemplate"):
        prepare(make(data=data, dataset=ALL, objective={"response_only": False}), endless)


def test_rows_are_prepared_once_and_their_warnings_told_each_time(
    make: Make, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "word " * count} for count in (5, 300)])
    first, told = prepare(make(data=data, dataset=ALL), tokenizer)
    assert len(told) == 1
    with monkeypatch.context() as patch:
        patch.setattr("finetune_trainer.data.prepare.ingest", None)
        restarted = make(data=data, dataset=ALL, job={"run_id": "another"}, training={"learning_rate": 1.0})
        again, told_again = prepare(restarted, tokenizer)
    assert told_again == told and again.fingerprint == first.fingerprint
    plan = make(data=data, dataset=ALL)
    assert len(prepared_folders(plan)) == 1

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = templates.GEMMA_LIKE
    prepare(plan, changed)
    prepare(make(data=data, dataset=ALL, training={"seed": 8}), tokenizer)
    write_rows(data, [{"text": "another"}])
    prepare(plan, tokenizer)
    assert len(prepared_folders(plan)) == 4


def test_two_that_build_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    folder, together = tmp_path / "rows", threading.Barrier(2)

    def build(building: Path) -> None:
        (building / "a").write_text(json.dumps("whole"))
        together.wait(20)

    threads = [threading.Thread(target=build_once, args=(folder, build)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"] and (folder / "a").read_text() == '"whole"'


def test_a_preparation_that_fails_leaves_nothing(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "good"}, {"text": 3}])
    plan = make(data=data, dataset=ALL)
    with pytest.raises(InvalidInputError, match=r"1 of 2 rows are broken: rows\.jsonl row 2: field text is a int"):
        prepare(plan, tokenizer)
    assert not prepared_folders(plan)
