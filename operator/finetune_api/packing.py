"""Where rows may share a sequence: the rule that validation and the trainer share."""

from typing import Literal, NamedTuple

from finetune_api.methods import METHODS, MethodType
from finetune_api.objectives import OBJECTIVES, ObjectiveType

PackingSetting = Literal["packing", "paddingFree"]

SEPARATING_ATTENTION = ("sdpa", "eager", "flash_attention_2")
"""Attention of transformers that keeps rows of one sequence apart by their position ids, given no attention mask. For
sdpa and eager the tests prove it; beyond that every run proves it on its own model before the first step."""


class PackingRefusal(NamedTuple):
    """Why rows may not share a sequence."""

    reason: str
    instead: str
    """The nearest thing that works."""


def find_packing_refusal(
    setting: PackingSetting, method: MethodType, objective: ObjectiveType, streaming: bool
) -> PackingRefusal | None:
    """Why ``training.packing: bfd`` or ``training.paddingFree: true`` is refused; None: it is supported."""
    off = "use training.packing: none" if setting == "packing" else "use training.paddingFree: false"
    if METHODS[method].part == "prompt":
        return PackingRefusal(
            f"method.type {method} drops the position ids that keep rows of one sequence apart",
            f"{off}, or method.type: lora",
        )
    if OBJECTIVES[objective].rows != "language":
        return PackingRefusal(f"objective.type {objective} compares whole rows", off)
    if streaming:
        return PackingRefusal("rows that are encoded as they are needed have no lengths to sort them by", off)
    return None
