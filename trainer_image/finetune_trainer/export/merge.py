"""The adapter as its own artifact, and merged into the model.

Merging QLoRA works without a second quantisation: PEFT's own merge of a 4-bit layer quantises the sum again.
"""

from pathlib import Path
from typing import Any

import torch

from finetune_api.plan import TrainingPlan
from finetune_trainer.model.adalora import set_rank_pattern
from finetune_trainer.model.starts import changes_base, start_folder


def save_adapter(plan: TrainingPlan, model: Any, folder: Path) -> None:
    """Write the trained adapter so that plain PEFT loads it on the base model as it was."""
    if plan.method.type == "adalora":
        set_rank_pattern(model)
    conversion = {}
    if changes_base(plan):
        # Twice the rank: what was trained, less what training started from.
        conversion = {"path_initial_model_for_weight_conversion": str(start_folder(plan))}
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False, **conversion)


def dequantise_base(model: Any, adapter: Path) -> Any:
    """The QLoRA model with its base weights dequantised to float32: the very values it was trained on, ready to merge.

    Works on the CPU, where the memory for the unpacked model is. Uses up ``model``; ``adapter`` is its exported adapter.
    """
    from peft import PeftModel

    base = model.unload().to("cpu").dequantize(dtype=torch.float32)
    # The quantisation is undone; a config that still names it would make loaders quantise the merged model.
    return PeftModel.from_pretrained(base.float(), adapter).eval()
