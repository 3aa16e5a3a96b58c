"""A small plan for the tests, and how to change it."""

import json
from pathlib import Path
from typing import Any

from finetune_api.plan import ResolvedSource, TrainingPlan


def file_source(path: Path) -> ResolvedSource:
    """A source of kind file."""
    return ResolvedSource(uri=f"file://{path}", kind="file", location=str(path))


def write_conversations(path: Path, count: int = 15) -> Path:
    """A file of ``build_conversations``."""
    path.write_text(build_conversations(count))
    return path


def build_conversations(count: int) -> str:
    """``count`` one-turn conversations of differing length, in the messages format: JSON lines."""
    rows = []
    for number in range(count):
        question = f"What is {number} plus {number}?" + " Please explain." * (number % 3)
        answer = f"It is {2 * number}" + ", as anybody can count" * (number % 4) + "."
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_plan(root: Path, model_folder: Path, data_file: Path, **changes: Any) -> TrainingPlan:
    """LoRA with dropout, float32, on the CPU: 3 epochs of 3 steps over 12 rows, 3 rows for validation.

    A dict in ``changes`` is laid over the section of that name, anything else replaces it.
    """
    sections: dict[str, Any] = {
        "job": {"name": "test", "namespace": "default", "run_id": "run-1"},
        "model": {"source": file_source(model_folder), "dtype": "float32", "attention": "sdpa"},
        "dataset": {"source": file_source(data_file), "format": "auto", "validation_fraction": 0.2},
        "method": {
            "type": "lora",
            "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1, "target_modules": ("all-linear",)},
        },
        "objective": {"type": "sft", "response_only": True},
        "training": {
            "epochs": 3.0,
            "learning_rate": 1e-2,
            "scheduler": "cosine",
            "warmup_ratio": 0.1,
            "weight_decay": 0.01,
            "per_device_batch_size": 2,
            "gradient_accumulation": 2,
            "max_length": 128,
            "gradient_checkpointing": False,
            "optimizer": "adamw_torch",
            "max_grad_norm": 1.0,
            "seed": 7,
            "precision": "fp32",
            "logging_steps": 1,
        },
        "parallelism": {"strategy": "single", "device": "cpu", "processes_per_node": 1},
        "checkpoint": {"directory": str(root / "checkpoints"), "every_steps": 2, "keep": 2, "resume": "auto"},
        "output": {"directory": str(root / "output"), "artifacts": ("adapter",), "verify": False},
        "observability": {"metrics_port": 0},
        "cache_directory": str(root / "cache"),
    }
    for name, change in changes.items():
        sections[name] = {**sections[name], **change} if isinstance(change, dict) and name in sections else change
    return TrainingPlan(**sections)
