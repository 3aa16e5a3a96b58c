"""A plan for each method, and what its artifacts say."""

from pathlib import Path
from typing import Any

from finetune_api.methods import METHODS, MethodType
from finetune_api.plan import TrainingPlan
from tests.trainer.plans import make_plan

ROW = [[0, 117, 82, 301, 77, 1, 45, 410]]
LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "target_modules": ("all-linear",)}
NF4 = {"bits": 4, "type": "nf4", "double_quant": False, "compute_dtype": "float32"}
_ENCODED = {"virtual_tokens": 4, "encoder_hidden_size": 16}

PARTS: dict[MethodType, dict[str, Any]] = {
    "freeze": {"trainable_layers": 1},
    "dora": {"lora": LORA},
    "rslora": {"lora": LORA},
    "lora-plus": {"lora": LORA | {"learning_rate_ratio": 4.0}},
    "pissa": {"lora": LORA},
    "olora": {"lora": LORA},
    "loftq": {"lora": LORA, "quantization": NF4},
    "adalora": {"lora": LORA | {"initial_rank": 6}},
    "ia3": {"ia3": {}},
    "prefix": {"prompt": _ENCODED},
    "prompt": {"prompt": {"virtual_tokens": 4}},
    "p-tuning": {"prompt": _ENCODED},
    "p-tuning-v2": {"prompt": {"virtual_tokens": 4}},
    "bottleneck": {"bottleneck": {"size": 8, "placement": "houlsby", "dropout": 0.1}},
}
"""Those beside full, lora and qlora."""
RATES: dict[MethodType, float] = {"ia3": 1e-1, "prompt": 1e-1}
STEPS, MIDDLE = 6, 3


def plan_method(method: MethodType, root: Path, model_folder: Path, data: Path, /, **changes: Any) -> TrainingPlan:
    """Six steps of four rows with a checkpoint in the middle, all artifacts of the method, verified."""
    kind = METHODS[method]
    sections: dict[str, Any] = {
        "method": {"type": method, "lora": None, **PARTS[method]},
        "dataset": {"validation_fraction": None},
        "training": {
            "epochs": None,
            "max_steps": STEPS,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "learning_rate": RATES.get(method, 1e-2),
        },
        "checkpoint": {"every_steps": MIDDLE},
        "output": {
            "artifacts": (*(["adapter"] if kind.adapter else []), *(["merged"] if kind.mergeable else [])),
            "verify": True,
        },
    }
    for name, change in changes.items():
        sections[name] = {**sections.get(name, {}), **change} if isinstance(change, dict) else change
    return make_plan(root, model_folder, data, **sections)


def artifact(plan: TrainingPlan, name: str = "adapter") -> Path:
    """Folder of the exported artifact."""
    return Path(plan.output.directory) / name


def weights_of(plan: TrainingPlan) -> bytes:
    """What was trained, bit for bit, as it is exported."""
    if METHODS[plan.method.type].adapter:
        return (artifact(plan) / "adapter_model.safetensors").read_bytes()
    return (artifact(plan, "merged") / "model.safetensors").read_bytes()


def load_plain(plan: TrainingPlan, name: str = "adapter") -> Any:
    """The exported adapter on its base as a person would load it: plain transformers and PEFT."""
    from peft import PeftModel

    from finetune_trainer.model.load import load_base

    return PeftModel.from_pretrained(load_base(plan, plan.model.source.location, "cpu"), artifact(plan, name))


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor(ROW)).logits
