"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247) as a tuner of PEFT.

Importing this makes PEFT know them: saving, loading, switching and switching off are PEFT's own.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from finetune_trainer.model.layers import find_layers

_TYPE = "BOTTLENECK"

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe")
"""What architectures call a decoder layer's sublayers."""


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """Adapters of width ``size``."""

    size: int = 64
    placement: str = "pfeiffer"
    """houlsby: behind attention and feed-forward; pfeiffer: behind feed-forward only."""
    dropout: float = 0.0
    target_modules: set[str] | list[str] | None = None
    """Names of the sublayers; found by ``placement`` if None."""
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _TYPE


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A sublayer with an adapter behind it: h + up(gelu(down(h))) for its output h, of shape (..., hidden).

    ``up`` starts at zero, so that the model starts as it was.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_dropout")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, name: str, config: BottleneckConfig, hidden: int) -> None:
        """A new adapter of that name."""
        device = next(self.base_layer.parameters()).device
        self.bottleneck_down[name] = nn.Linear(hidden, config.size, device=device)
        self.bottleneck_up[name] = nn.Linear(config.size, hidden, device=device)
        self.bottleneck_dropout[name] = nn.Dropout(config.dropout)
        nn.init.zeros_(self.bottleneck_up[name].weight)
        nn.init.zeros_(self.bottleneck_up[name].bias)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return output
        # Attention gives its weights too.
        hidden, *others = output if isinstance(output, tuple) else (output,)
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                inner = self.bottleneck_down[name](hidden.to(self.bottleneck_down[name].weight.dtype))
                change = self.bottleneck_up[name](self.bottleneck_dropout[name](nn.functional.gelu(inner)))
                hidden = hidden + change.to(hidden.dtype)
        return (hidden, *others) if isinstance(output, tuple) else hidden


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """A model with bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        if peft_config.target_modules is None:
            wanted = _FEED_FORWARD if peft_config.placement == "pfeiffer" else (*_ATTENTION, *_FEED_FORWARD)
            _, layers = find_layers(self.model)
            found = {name for name, _ in layers[0].named_children() if name in wanted}
            if not found:
                raise ValueError(f"its decoder layers have no part named {' or '.join(wanted)}")
            peft_config.target_modules = found
        return peft_config

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            layer = target
        else:
            layer = BottleneckLayer(target)
            layer._active_adapter = adapter_name
            self._replace_module(parent, target_name, layer, target)
        layer.add(adapter_name, peft_config, self.model.config.get_text_config().hidden_size)


PEFT_TYPE_TO_CONFIG_MAPPING[_TYPE] = BottleneckConfig
PEFT_TYPE_TO_TUNER_MAPPING[_TYPE] = BottleneckModel
PEFT_TYPE_TO_PREFIX_MAPPING[_TYPE] = BottleneckModel.prefix


def load_bottleneck(model: torch.nn.Module, folder: str | Path) -> PeftModel:
    """``model`` with the exported adapters of ``folder``."""
    return PeftModel.from_pretrained(model, folder)
