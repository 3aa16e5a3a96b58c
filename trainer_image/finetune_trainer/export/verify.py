"""Artifacts are reloaded by plain transformers and PEFT, and must give the logits of the trained model."""

from pathlib import Path
from typing import Any

import torch

from finetune_api.plan import Artifact, TrainingPlan
from finetune_trainer.errors import TrainerError
from finetune_trainer.model.adapters import load_adapters
from finetune_trainer.model.load import load_base, model_class

_TOLERANCE = {("adapter", True): 1e-4, ("merged", True): 1e-3, ("adapter", False): 2e-2, ("merged", False): 5e-2}
"""Largest difference of two logits, as a share of the largest logit (at least 1), by artifact and whether all is float32.
Merging rounds each weight once more, which in bfloat16 is 2^-9 of it."""

_TOKENS = 128
"""Compared tokens of a row: a longer one says no more, and its logits take memory."""


class ArtifactMismatchError(TrainerError):
    """A reloaded artifact isn't the model that was trained."""


def compute_logits(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each row as float32 on the CPU: (tokens, vocabulary), of a classifier (labels)."""
    device = next(model.parameters()).device
    logits = []
    with torch.inference_mode():
        for row in rows:
            output = model(input_ids=torch.tensor([row[:_TOKENS]], device=device), use_cache=False)
            logits.append(output.logits[0].float().cpu())
    return logits


def reload_adapter(plan: TrainingPlan, location: str, adapter: Path, device: torch.device) -> Any:
    """The base model, as it was loaded for training, with the exported adapter."""
    return load_adapters(load_base(plan, location, str(device)), {"default": adapter}).eval()


def reload_merged(plan: TrainingPlan, merged: Path, device: torch.device) -> Any:
    """The exported model."""
    return (
        model_class(plan)
        .from_pretrained(
            merged,
            dtype=getattr(torch, plan.model.dtype),
            attn_implementation=plan.model.attention,
            trust_remote_code=plan.model.trust_remote_code,
            device_map={"": str(device)},
        )
        .eval()
    )


def compare_logits(
    plan: TrainingPlan, name: Artifact, expected: list[torch.Tensor], reloaded: list[torch.Tensor]
) -> float:
    """The largest difference of two logits, as a share of the largest logit (at least 1).

    Raises: ArtifactMismatchError when it is beyond rounding.
    """
    quantization = plan.method.quantization
    exact = plan.model.dtype == "float32" and (quantization is None or quantization.compute_dtype == "float32")
    scale = max(1.0, *(float(one.abs().max()) for one in expected))
    difference = max(float((one - other).abs().max()) for one, other in zip(expected, reloaded, strict=True)) / scale
    limit = _TOLERANCE[name, exact]
    # Written so that a NaN fails, too.
    if not difference <= limit:
        raise ArtifactMismatchError(
            f"the {name} artifact, reloaded, gives other logits than the trained model: they differ by up to "
            f"{difference:.2g} of the largest one, allowed is {limit:.2g}; nothing was published"
        )
    return difference
