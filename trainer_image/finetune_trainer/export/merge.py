"""Merging QLoRA without a second quantisation: PEFT's own merge of a 4-bit layer quantises the sum again."""

from pathlib import Path
from typing import Any

import torch


def dequantise_base(model: Any, adapter: Path) -> Any:
    """The QLoRA model with its base weights dequantised to float32: the very values it was trained on, ready to merge.

    Works on the CPU, where the memory for the unpacked model is. Uses up ``model``; ``adapter`` is its exported adapter.
    """
    from peft import PeftModel

    base = model.unload().to("cpu").dequantize(dtype=torch.float32)
    # The quantisation is undone; a config that still names it would make loaders quantise the merged model.
    return PeftModel.from_pretrained(base.float(), adapter).eval()
