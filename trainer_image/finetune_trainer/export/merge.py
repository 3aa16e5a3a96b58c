"""The adapter as its own artifact, and merged into the model.

Merging QLoRA works without a second quantisation: PEFT's own merge of a 4-bit layer quantises the sum again.
"""

from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from finetune_api.plan import TrainingPlan
from finetune_trainer.model.adalora import set_rank_pattern
from finetune_trainer.model.starts import changes_base, start_folder


def save_adapter(plan: TrainingPlan, model: Any, folder: Path) -> None:
    """Write the trained adapter so that plain PEFT loads it on the base model as it was."""
    if plan.method.type == "adalora":
        set_rank_pattern(model)
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    if changes_base(plan):
        _subtract_start(folder, start_folder(plan))


def _subtract_start(folder: Path, start: Path) -> None:
    """Make the adapter in ``folder`` one for the original weights W: what was taken out of them, B0 A0, is subtracted.

    W - B0 A0 + B A = W + [B | -B0] [A ; A0], of twice the rank. PEFT's own conversion loses a classifier's head.
    """
    from peft import LoraConfig

    weights, began = (load_file(place / SAFETENSORS_WEIGHTS_NAME) for place in (folder, start))
    for name, weight in weights.items():
        if ".lora_A." in name:
            weights[name] = torch.cat([weight, began[name]], dim=0)
        elif ".lora_B." in name:
            weights[name] = torch.cat([weight, -began[name]], dim=1)
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = LoraConfig.from_pretrained(folder)
    # The scale is alpha / r: it stays.
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.save_pretrained(folder)


def dequantise_base(model: Any, adapter: Path) -> Any:
    """The QLoRA model with its base weights dequantised to float32: the very values it was trained on, ready to merge.

    Works on the CPU, where the memory for the unpacked model is. Uses up ``model``; ``adapter`` is its exported adapter.
    """
    from peft import PeftModel

    base = model.unload().to("cpu").dequantize(dtype=torch.float32)
    # The quantisation is undone; a config that still names it would make loaders quantise the merged model.
    return PeftModel.from_pretrained(base.float(), adapter).eval()
