"""The script that a person writes with TRL and PEFT for the job that ``benchmarks.trainer`` gives to the trainer.

python -m benchmarks.peers.plain_trl MODEL ROWS STEPS
"""

import sys
import tempfile
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.peers.stopwatch import Stopwatch


def build_trainer(
    model: str, rows: str, steps: str, folder: str, callback: TrainerCallback, **differing: Any
) -> SFTTrainer:
    """``differing``: arguments that another peer has beside these."""
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=folder),
        args=SFTConfig(
            output_dir=folder,
            max_steps=int(steps),
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            max_length=256,
            seed=42,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **differing,
        ),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[callback],
    )


def main(model: str, rows: str, steps: str) -> None:
    stopwatch = Stopwatch()
    counted = {"per_device_train_batch_size": 8, "include_num_input_tokens_seen": "non_padding"}
    trainer = build_trainer(model, rows, steps, tempfile.mkdtemp(), stopwatch, **counted)
    trainer.train()
    stopwatch.report(trainer)


if __name__ == "__main__":
    main(*sys.argv[1:])
