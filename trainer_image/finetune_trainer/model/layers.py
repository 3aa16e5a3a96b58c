"""The decoder layers of a model, whatever its architecture calls them."""

from typing import Any

from torch import nn

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError


def find_layers(model: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The module that holds the decoder layers, and the layers. Raises: ValueError when there are none."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, child
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder layers")


def train_last_layers(plan: TrainingPlan, model: Any) -> None:
    """Freeze all but the last ``trainable_layers`` decoder layers, the final norm, and a classifier's new head.

    Raises: InvalidInputError when the model has fewer layers.
    """
    decoder, layers = find_layers(model)
    wanted = plan.method.trainable_layers
    assert wanted is not None
    if wanted > len(layers):
        raise InvalidInputError(
            f"method.trainableLayers: {wanted}, but the model has {len(layers)} decoder layers: set {len(layers)} or less"
        )
    model.requires_grad_(False)
    norms = [child for name, child in decoder.named_children() if "norm" in _kind(child) and "embed" not in name]
    heads = [model.score] if hasattr(model, "score") else []
    for module in (*layers[-wanted:], *norms, *heads):
        module.requires_grad_(True)


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()
