"""The plain TRL script of ``plain_trl`` with transformers' own just-in-time checkpoint: on SIGTERM it saves, and goes on when started again.

python -m benchmarks.peers.jit_checkpoint MODEL ROWS STEPS FOLDER
"""

import json
import sys
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer


class Announcer(TrainerCallback):
    """Prints each step as it ends."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        print(json.dumps({"step": state.global_step}), flush=True)


def main(model: str, rows: str, steps: str, folder: str) -> None:
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=f"{folder}/cache"),
        args=SFTConfig(
            output_dir=f"{folder}/checkpoints",
            max_steps=int(steps),
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=2,
            gradient_checkpointing=False,
            max_length=256,
            seed=42,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            enable_jit_checkpoint=True,
            report_to="none",
            disable_tqdm=True,
        ),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Announcer()],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(f"{folder}/checkpoints"))


if __name__ == "__main__":
    main(*sys.argv[1:])
