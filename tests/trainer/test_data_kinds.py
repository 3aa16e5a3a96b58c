"""Prepared rows of each kind, held against what TRL itself makes of the same rows."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.objectives import ObjectiveType
from finetune_api.plan import TrainingPlan
from finetune_trainer.data.prepare import PreparedData
from finetune_trainer.errors import InvalidInputError
from tests.trainer import preparing, templates

MORE = " Please tell me all about it, and why."


def _question(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"What is {number} plus {number}?" + MORE * (number % 3)}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _pairs(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, _question(number)],
            "chosen": [_answer(f"It is {2 * number}.")],
            "rejected": [_answer("I do not know." + " Sorry." * number)],
        }
        for number in range(count)
    ]


Prepare = Callable[..., PreparedData]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def prepare(make: Callable[..., TrainingPlan], tokenizer: Any, tmp_path: Path, warnings: list[str]) -> Prepare:
    """``prepare(objective, rows)``: prepared as for training, without a validation split."""

    def run(objective: ObjectiveType, rows: list[dict[str, Any]], **changes: Any) -> PreparedData:
        file = preparing.write_rows(tmp_path / "rows.jsonl", rows)
        used = changes.pop("tokenizer", tokenizer)
        dataset = {"validation_fraction": None}
        data, told = preparing.prepare(make(data=file, objective={"type": objective}, dataset=dataset, **changes), used)
        warnings.extend(text for _, text in told)
        return data

    return run


def _trl(module: str, trainer: str, config: str, tokenizer: Any, rows: list[dict[str, Any]], **arguments: Any) -> Any:
    """What TRL's trainer makes of the rows, without a model."""
    from importlib import import_module

    from datasets import Dataset

    trl = import_module(f"trl.trainer.{module}")
    args = getattr(trl, config)(output_dir="unused", report_to="none", use_cpu=True, **arguments)
    bare = object.__new__(getattr(trl, trainer))
    bare._tokenizer, bare.calculate_KL = tokenizer, False
    bare.desirable_weight = bare.undesirable_weight = 1.0
    return bare._prepare_dataset(Dataset.from_list(rows), tokenizer, args, "train")


def _templated(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    changed.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return changed


PLAIN = [{"prompt": "The sky is", "chosen": " blue", "rejected": " green and low"}] * 2
IMPLICIT = [
    {"chosen": [*row["prompt"], *row["chosen"]], "rejected": [*row["prompt"], *row["rejected"]]} for row in _pairs()
]


@pytest.mark.parametrize("rows", [_pairs(), IMPLICIT, PLAIN], ids=["explicit", "implicit", "plain"])
def test_dpo_rows_equal_trls(prepare: Prepare, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    theirs = _trl("dpo_trainer", "DPOTrainer", "DPOConfig", tokenizer, rows, max_length=128)
    ours = prepare("dpo", rows).train
    assert ours.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert ours.to_list() == theirs.select_columns(ours.column_names).to_list()


def test_dpo_rows_equal_trls_where_the_template_writes_the_first_token(prepare: Prepare, tokenizer: Any) -> None:
    """Gemma's template begins with the beginning-of-text token: one, not two."""
    gemma = _templated(tokenizer, templates.GEMMA_LIKE)
    rows = [{**row, "prompt": row["prompt"][1:]} for row in _pairs()]
    theirs = _trl("dpo_trainer", "DPOTrainer", "DPOConfig", gemma, rows, max_length=128)
    ours = prepare("dpo", rows, tokenizer=gemma).train
    assert ours.to_list() == theirs.select_columns(ours.column_names).to_list()
    assert all(row["prompt_ids"].count(gemma.bos_token_id) == 1 for row in ours)


@pytest.mark.parametrize("max_length", [128, 56])
def test_dpo_batches_equal_trls_when_they_are_cut(
    prepare: Prepare, tokenizer: Any, warnings: list[str], max_length: int
) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length)
    theirs = _trl("dpo_trainer", "DPOTrainer", "DPOConfig", tokenizer, _pairs(), max_length=max_length)
    ours = prepare("dpo", _pairs(), training={"max_length": max_length}).train
    assert collate(ours.to_list())["input_ids"].tolist() == collate(theirs.to_list())["input_ids"].tolist()
    assert (len(ours) < 6) == any("left out: training.maxLength 56 is filled by the prompt" in w for w in warnings)


def test_kto_rows_equal_trls(prepare: Prepare, tokenizer: Any) -> None:
    judged = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in _pairs()
        for side in ("chosen", "rejected")
    ]
    theirs = _trl("kto_trainer", "KTOTrainer", "KTOConfig", tokenizer, judged, max_length=128)
    ours = prepare("kto", judged).train
    assert ours.column_names == ["prompt_ids", "completion_ids", "label"]
    assert ours.to_list() == theirs.select_columns(ours.column_names).to_list()
    assert prepare("kto", _pairs()).train.to_list() == ours.to_list()


@pytest.mark.parametrize("max_length", [128, 56])
def test_reward_rows_equal_trls(prepare: Prepare, tokenizer: Any, warnings: list[str], max_length: int) -> None:
    theirs = _trl("reward_trainer", "RewardTrainer", "RewardConfig", tokenizer, _pairs(), max_length=max_length)
    ours = prepare("reward", _pairs(), training={"max_length": max_length}).train
    assert [
        {name: [*row["prompt_ids"], *row[name]] for name in ("chosen_ids", "rejected_ids")} for row in ours
    ] == theirs.select_columns(["chosen_ids", "rejected_ids"]).to_list()
    assert (len(ours) < 6) == any("maxLength 56 would cut an answer of them" in w for w in warnings)


def test_prompts_equal_trls(prepare: Prepare, tokenizer: Any) -> None:
    rows = [{"prompt": row["prompt"], "answer": row["chosen"][0]["content"], "level": 3} for row in _pairs()]
    theirs = tokenizer.apply_chat_template(
        [row["prompt"] for row in rows], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ours = prepare("grpo", rows).train
    assert ours.column_names == ["prompt", "prompt_ids", "reference", "fields"]
    assert ours["prompt_ids"][:] == theirs
    assert [tokenizer.decode(ids) for ids in theirs] == ours["prompt"][:]
    assert ours[1]["reference"] == "It is 2." and json.loads(ours[1]["fields"]) == {"level": 3}


def test_prompts_of_conversations_stop_before_the_last_answer(prepare: Prepare, tokenizer: Any) -> None:
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in _pairs()]
    asked = prepare("ppo", rows).train
    assert asked[2]["prompt"].endswith("<|im_start|>assistant\n") and asked[2]["reference"] == "It is 4."


def test_a_prompt_as_long_as_the_length_leaves_no_room(prepare: Prepare, warnings: list[str]) -> None:
    rows = [{"prompt": "Why?"}, {"prompt": "Why? " * 200}]
    assert len(prepare("grpo", rows).train) == 1
    [warning] = warnings
    assert warning.startswith("1 of 2 rows") and "training.maxLength 128 is filled by the prompt" in warning


def test_a_template_without_an_end_gets_the_end_of_text(prepare: Prepare, tokenizer: Any) -> None:
    endless = _templated(tokenizer, templates.WITHOUT_END)
    [row] = prepare("dpo", _pairs(1), tokenizer=endless).train
    assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id


def test_messages_need_a_template(prepare: Prepare, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InvalidInputError, match=r"no chat template: set model\.chatTemplate"):
        prepare("dpo", _pairs(1), tokenizer=bare)
    alpaca = [{"instruction": "Q", "output": "A"}]
    assert prepare("grpo", alpaca, tokenizer=bare).train["prompt"][0] == "### Instruction:\nQ\n\n### Response:\n"


def test_another_dataset_is_another_fingerprint(prepare: Prepare) -> None:
    first = prepare("dpo", _pairs())
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in _pairs()]
    assert first.fingerprint == prepare("dpo", _pairs()).fingerprint != prepare("dpo", swapped).fingerprint
    assert first.largest_id == max(max(ids) for row in first.train for ids in row.values())
