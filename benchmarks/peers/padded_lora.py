"""A widespread LoRA script with transformers' Trainer: every row padded to the longest length, loss on all of it.

Rank 16, alpha 32, dropout 0.05, the seven projections, batches of 4 accumulated 4 times, 2e-4, cosine.

    python -m benchmarks.peers.padded_lora MODEL ROWS STEPS
"""

import json
import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from benchmarks.peers.stopwatch import Stopwatch

MAX_LENGTH = 256


def main(model: str, rows: str, steps: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    texts = [
        tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        for line in Path(rows).read_text().splitlines()
    ]
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding="max_length")
    dataset = Dataset.from_dict({**encoded, "labels": encoded["input_ids"]})
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    stopwatch = Stopwatch()
    trainer = Trainer(
        model=get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype="float32"), lora),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=int(steps),
            learning_rate=2e-4,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            include_num_input_tokens_seen="non_padding",
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[stopwatch],
    )
    trainer.train()
    stopwatch.report(trainer)


if __name__ == "__main__":
    main(*sys.argv[1:])
