"""The trainer trains what a plain TRL script trains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import TrainingPlan
from tests.trainer.conftest import adapter_bytes
from tests.trainer.plans import write_conversations
from tests.trainer.running import losses, run


def _plain_trl(plan: TrainingPlan, data: Path, output: Path, **settings: Any) -> Any:
    """The script that a person would write with TRL for the same thing, on its own data preparation."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    training, lora = plan.training, plan.method.lora
    location = plan.model.source.location
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(location),
        train_dataset=load_dataset("json", data_files=str(data), split="train", cache_dir=str(output / "cache")),
        args=SFTConfig(
            output_dir=str(output),
            num_train_epochs=training.epochs,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.scheduler,
            warmup_steps=training.warmup_ratio,
            weight_decay=training.weight_decay,
            per_device_train_batch_size=training.per_device_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation,
            gradient_checkpointing=False,
            optim=training.optimizer,
            seed=training.seed,
            max_length=training.max_length,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        peft_config=lora
        and LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.save_model(str(output / "final"))
    return trainer


def _as_prompt_completion(data: Path, path: Path) -> Path:
    rows = [json.loads(line)["messages"] for line in data.read_text().splitlines()]
    path.write_text("".join(json.dumps({"prompt": row[:1], "completion": row[1:]}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("response_only", [True, False], ids=["responses", "all tokens"])
def test_lora_equals_plain_trl(make: Callable[..., TrainingPlan], tmp_path: Path, response_only: bool) -> None:
    """Same seed and data, dropout on: the same loss at each step and the same adapter, bit for bit."""
    data = write_conversations(tmp_path / "rows.jsonl")
    plan = make(data=data, dataset={"validation_fraction": None}, objective={"response_only": response_only})
    run(plan)
    same_rows = _as_prompt_completion(data, tmp_path / "pairs.jsonl") if response_only else data
    theirs = _plain_trl(plan, same_rows, tmp_path / "trl")
    assert losses(plan) == [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert adapter_bytes(plan) == (tmp_path / "trl" / "final" / "adapter_model.safetensors").read_bytes()


def test_full_fine_tuning_equals_plain_trl(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    data = write_conversations(tmp_path / "rows.jsonl")
    plan = make(
        data=data,
        dataset={"validation_fraction": None},
        objective={"response_only": False},
        method={"type": "full", "lora": None},
        training={"epochs": 1.0},
        output={"artifacts": ("merged",)},
    )
    run(plan)
    _plain_trl(plan, data, tmp_path / "trl")
    ours = load_file(Path(plan.output.directory) / "merged" / "model.safetensors")
    theirs = load_file(tmp_path / "trl" / "final" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
