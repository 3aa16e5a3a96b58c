"""Packed rows: attention keeps them apart, the loss is that of the same rows alone, and what can't is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.packing import SEPARATING_ATTENTION
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from tests.trainer.conftest import Start, adapter_bytes, clear
from tests.trainer.plans import file_source, write_conversations
from tests.trainer.ranks import run_ranks
from tests.trainer.running import Recorder, losses, run

ONE_STEP = {"max_steps": 1, "epochs": None, "per_device_batch_size": 12, "gradient_accumulation": 1}
ALONE = {"method": {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}}}


def _load(folder: Path, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)


def _collator(name: str) -> Any:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from finetune_trainer.objective.sft import PackedRowsCollator

    if name == "bfd":
        return PackedRowsCollator(pad_token_id=0, return_position_ids=True)
    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)


@pytest.mark.parametrize("setting", ["bfd", "padding-free"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_packed_rows_are_those_of_the_rows_alone(tiny_model: Path, attention: str, setting: str) -> None:
    import torch

    assert attention in SEPARATING_ATTENTION
    model = _load(tiny_model, attention)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 500, (length,), generator=generator).tolist() for length in (7, 13, 2, 21, 5)]
    packed = [rows[:3], rows[3:]]
    joined = [[token for row in part for token in row] for part in packed]
    batch = _collator(setting)(
        [
            {"input_ids": ids, "labels": ids, "seq_lengths": [len(row) for row in part]}
            for ids, part in zip(joined, packed, strict=True)
        ]
    )
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits.reshape(-1, model.config.vocab_size)
        alone = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]
    worst = 0.0
    width = batch["input_ids"].shape[1] if setting == "bfd" else 0
    starts = [0, 7, 20, *(start + (width or 22) for start in (0, 21))]
    for start, row, logits in zip(starts, rows, alone, strict=True):
        worst = max(worst, (together[start : start + len(row)] - logits).abs().max().item())
    print(f"{attention} {setting}: largest difference of a logit {worst:.1e}")
    assert worst < 1e-5


def _first_step(plan: TrainingPlan) -> tuple[float, float]:
    """Loss and gradient norm of the only step."""
    history = json.loads((Path(plan.checkpoint.directory) / "checkpoint-1" / "trainer_state.json").read_text())
    entry = next(each for each in history["log_history"] if "loss" in each)
    return entry["loss"], entry["grad_norm"]


def test_a_packed_batch_has_the_loss_and_gradient_of_its_rows(make: Callable[..., TrainingPlan]) -> None:
    """Weighted by tokens, prompts masked or not; the tokens counted are the same too."""
    for response_only in (True, False):
        objective = {"response_only": response_only}
        plan = make(training=ONE_STEP, objective=objective, **ALONE)
        clear(plan)
        tokens = run(plan).tokens_seen
        alone = _first_step(plan)
        for setting in ({"packing": "bfd"}, {"padding_free": True}):
            clear(plan)
            assert run(make(training={**ONE_STEP, **setting}, objective=objective, **ALONE)).tokens_seen == tokens
            together = _first_step(plan)
            print(f"{setting}: loss {together[0]} alone {alone[0]}, gradient {together[1]} alone {alone[1]}")
            assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("bits", "kind"), [(4, "nf4"), (8, "int8")])
def test_rows_pack_on_a_quantised_base(make: Callable[..., TrainingPlan], bits: int, kind: str) -> None:
    quantization = {"bits": bits, "type": kind, "double_quant": bits == 4, "compute_dtype": "float32"}
    method = {"type": "qlora", **ALONE["method"], "quantization": quantization}
    training = {**ONE_STEP, "packing": "bfd", "max_steps": 3}
    plan = make(training=training, method=method, checkpoint={"every_steps": 3})
    run(plan)
    first, *_, last = losses(plan)
    assert last < first


def test_packing_fills_sequences_and_resumes_exactly(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    """One epoch over 32 rows in fewer sequences; a run cut in two ends with the bits of one that wasn't."""
    from finetune_trainer.checkpoint.resume import read_marker
    from finetune_trainer.store import Store

    data = write_conversations(tmp_path / "rows.jsonl", 40)
    training = {
        "packing": "bfd",
        "per_device_batch_size": 1,
        "gradient_accumulation": 1,
        "max_length": 256,
        "epochs": 1.0,
    }
    whole = make("whole", data=data, training=training)
    result = run(whole)
    assert 4 <= result.steps < 16
    marker = read_marker(Store(whole.checkpoint.directory), result.steps)
    assert marker.samples_consumed == 32
    cut = make("cut", data=data, training=training)
    run(cut)
    for folder in Path(cut.checkpoint.directory).glob("checkpoint-*"):
        if folder.name == f"checkpoint-{result.steps}":
            shutil.rmtree(folder)
    shutil.rmtree(cut.output.directory)
    recorder = Recorder()
    assert run(cut, recorder).resumes == 1 and recorder.messages("resumed")
    assert adapter_bytes(cut) == adapter_bytes(whole)
    assert losses(cut) == losses(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "method": {"type": "prompt", "lora": None, "prompt": {"virtual_tokens": 4}},
                "training": {"packing": "bfd"},
            },
            r"training\.packing bfd: method\.type prompt drops the position ids.*use training\.packing: none",
        ),
        (
            {"objective": {"type": "dpo"}, "training": {"padding_free": True}},
            r"training\.paddingFree true: objective\.type dpo compares whole rows: use training\.paddingFree: false",
        ),
    ],
)
def test_refused(make: Callable[..., TrainingPlan], changes: dict[str, Any], message: str) -> None:
    from finetune_trainer.objective.arguments import build_arguments

    with pytest.raises(InvalidInputError, match=message):
        build_arguments(make(**changes), False, False)


def test_a_model_that_mixes_rows_is_refused_before_the_first_step(
    make: Callable[..., TrainingPlan], tiny_model: Path, tmp_path: Path
) -> None:
    """Bloom's attention goes by distance, it has no position ids."""
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = tmp_path / "bloom"
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(InvalidInputError, match=r"bloom doesn't keep the rows of one sequence apart.*packing: none"):
        run(make(model={"source": file_source(folder), "attention": "eager"}, training={"packing": "bfd"}))


def test_two_ranks_share_packed_rows_and_find_their_batch(make: Callable[..., TrainingPlan], start: Start) -> None:
    """The global batch of one process in two: the same losses."""
    packed = {"packing": "bfd", "max_length": 256, "gradient_accumulation": 1}
    one = make("one", training=packed, **ALONE)
    run(one)
    two = make(
        "two",
        training={**packed, "per_device_batch_size": 1, "batch_search": True},
        parallelism={"strategy": "ddp", "processes_per_node": 2},
        **ALONE,
    )
    ranks = run_ranks(start, two)
    assert [event["message"] for event in ranks[0].events("batch")] == [
        "a batch of 1 fits the memory, accumulated 1 times"
    ]
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
