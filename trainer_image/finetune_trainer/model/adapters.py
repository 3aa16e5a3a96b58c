"""Several adapters in one model, switched while it serves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.errors import InvalidInputError


def load_adapters(model: Any, folders: Mapping[str, str | Path]) -> Any:
    """``model`` with the adapter of each folder under its name, the first one active.

    ``set_adapter(name)`` of what is returned switches, ``with disable_adapter()`` gives the base model; both take no
    time, as nothing is loaded. All have to be of one kind: PEFT can't hold LoRA beside prompts, say.

    Raises: InvalidInputError when they aren't.
    """
    from peft import PeftConfig, PeftModel

    import finetune_trainer.model.bottleneck  # noqa: F401  PEFT learns of its adapters

    configs = {name: PeftConfig.from_pretrained(str(folder)) for name, folder in folders.items()}
    kinds = {name: getattr(config.peft_type, "value", config.peft_type) for name, config in configs.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise InvalidInputError(f"adapters of different kinds can't share a model: {listed}; load them one at a time")
    (first, folder), *others = folders.items()
    loaded = PeftModel.from_pretrained(model, str(folder), adapter_name=first)
    for name, folder in others:
        loaded.load_adapter(str(folder), adapter_name=name)
    return loaded
