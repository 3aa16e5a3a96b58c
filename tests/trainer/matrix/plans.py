"""A small plan for each method, objective and strategy, and the rows for it."""

import json
from pathlib import Path
from typing import Any

from finetune_api.matrix import Cell
from finetune_api.methods import METHODS, MethodType
from finetune_api.objectives import OBJECTIVES, ObjectiveType, Rows
from finetune_api.plan import TrainingPlan
from tests.trainer.plans import make_plan
from tests.trainer.ranks import share_out

STEPS, MIDDLE = 8, 4
"""Optimiser steps of a run, and the step of the checkpoint that it is resumed from."""

_LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("all-linear",)}
_NF4 = {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "float32"}
_PARTS: dict[MethodType, dict[str, Any]] = {
    "full": {},
    "freeze": {"trainable_layers": 1},
    "lora": {"lora": _LORA},
    "qlora": {"lora": _LORA, "quantization": _NF4},
    "dora": {"lora": _LORA},
    "rslora": {"lora": _LORA},
    "lora-plus": {"lora": _LORA | {"learning_rate_ratio": 16.0}},
    "pissa": {"lora": _LORA},
    "olora": {"lora": _LORA},
    "loftq": {"lora": _LORA, "quantization": _NF4},
    "adalora": {"lora": _LORA | {"initial_rank": 6}},
    "ia3": {"ia3": {}},
    "prefix": {"prompt": {"virtual_tokens": 4, "encoder_hidden_size": 32}},
    "prompt": {"prompt": {"virtual_tokens": 4}},
    "p-tuning": {"prompt": {"virtual_tokens": 4, "encoder_hidden_size": 32}},
    "p-tuning-v2": {"prompt": {"virtual_tokens": 4}},
    "bottleneck": {"bottleneck": {"size": 8, "placement": "pfeiffer"}},
}
_RATES: dict[MethodType, float] = {
    "full": 3e-3,
    "freeze": 3e-3,
    "lora-plus": 1e-3,
    "ia3": 5e-2,
    "prompt": 1e-1,
    "p-tuning": 1e-2,
}
_GENERATED: dict[str, Any] = {
    "reward_functions": ("tests.trainer.matrix.plans:count_vowels",),
    "generation": {"completions": 2, "max_tokens": 6},
}
_OBJECTIVES: dict[ObjectiveType, dict[str, Any]] = {
    "sft": {"response_only": True},
    "pretrain": {"response_only": False},
    "dpo": {"beta": 0.1},
    "orpo": {"beta": 0.1},
    "kto": {"beta": 0.1},
    "reward": {},
    "ppo": _GENERATED | {"beta": 0.01, "ppo": {"epochs": 2}},
    "rloo": _GENERATED | {"beta": 0.01},
    "grpo": _GENERATED | {"beta": 0.0},
}


def count_vowels(completions: list[str], **columns: Any) -> list[float]:
    """A reward that tells most answers of a random model apart: the share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def write_rows(rows: Rows, path: Path, count: int = 8) -> Path:
    """``count`` rows of a kind, in the format that people write them in."""
    written = []
    for number in range(count):
        prompt = [{"role": "user", "content": f"What is {number} plus {number}?" + " Please explain." * (number % 3)}]
        good = [{"role": "assistant", "content": f"It is {2 * number}" + ", surely" * (number % 2) + "."}]
        bad = [{"role": "assistant", "content": "I will not say" + " it" * (number % 3) + "!"}]
        match rows:
            case "language":
                written.append({"messages": prompt + good})
            case "preference":
                written.append({"prompt": prompt, "chosen": good, "rejected": bad})
            case "unpaired":
                liked = number % 2 == 0
                written.append({"prompt": prompt, "completion": good if liked else bad, "label": liked})
            case "prompts":
                written.append({"prompt": prompt})
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return path


def plan_cell(cell: Cell, root: Path, model_folder: Path) -> TrainingPlan:
    """The plan that stands for a cell: 8 rows, 8 steps of 4 rows, a checkpoint in the middle and at the end."""
    method, objective = METHODS[cell.method], OBJECTIVES[cell.objective]
    root.mkdir(parents=True, exist_ok=True)
    two = cell.strategy != "single"
    parallelism = share_out(cell.strategy) if two else {}
    mergeable = method.mergeable and not objective.classifies
    return make_plan(
        root,
        model_folder,
        write_rows(objective.rows, root / "rows.jsonl"),
        dataset={"validation_fraction": None},
        method={"type": cell.method, "lora": None} | _PARTS[cell.method],
        objective={"type": cell.objective, "response_only": False} | _OBJECTIVES[cell.objective],
        training={
            "epochs": None,
            "max_steps": STEPS,
            "learning_rate": _RATES.get(cell.method, 1e-2),
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "per_device_batch_size": 2,
            "gradient_accumulation": 1 if two else 2,
            "max_length": 96,
        },
        parallelism=parallelism,
        checkpoint={"every_steps": MIDDLE, "keep": 2},
        output={
            "artifacts": (*(["adapter"] if method.adapter else []), *(["merged"] if mergeable else [])),
            "verify": True,
        },
    )
