"""Methods that start from the weights: PiSSA, OLoRA and LoftQ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.methods import MethodType
from finetune_api.plan import TrainingPlan


def start_from_weights(init: str) -> Callable[[TrainingPlan, Any, Any], Any]:
    """A start that PEFT makes, ``init_lora_weights=init``: the adapter holds a part of the weights, the base the rest."""

    def attach(plan: TrainingPlan, model: Any, config: Any) -> Any:
        from peft import get_peft_model

        config.init_lora_weights = init
        attached = get_peft_model(model, config)
        # The part is taken out once: PEFT would take out another one for each further adapter, TRL's reference say.
        config.init_lora_weights = True
        return attached

    return attach


def start_from_quantisation_error(plan: TrainingPlan, model: Any, config: Any) -> Any:
    """LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1 with T = 1): the adapter of each quantised layer is the best
    approximation of what the quantisation has lost. PEFT's own does this on GPUs only."""
    import torch
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    from finetune_trainer.model.load import load_base

    unquantised = plan.model_copy(update={"method": plan.method.model_copy(update={"quantization": None})})
    attached = get_peft_model(model, config)
    original = load_base(unquantised, model.name_or_path, "cpu")
    for name, layer in attached.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            kept = dequantize_module_weight(layer.get_base_layer()).float()
            lost = original.get_submodule(name).weight.to(kept) - kept
            left, values, right = torch.linalg.svd(lost.detach(), full_matrices=False)
            rank, root = config.r, (values / layer.scaling["default"]).sqrt()
            layer.lora_B["default"].weight.data = (left * root)[:, :rank].contiguous()
            layer.lora_A["default"].weight.data = (root[:, None] * right)[:rank].contiguous()
    return attached


STARTS: dict[MethodType, Callable[[TrainingPlan, Any, Any], Any]] = {
    # Exact singular values take minutes a layer of a large model; 16 iterations are as good (Meng et al., section 5).
    "pissa": start_from_weights("pissa_niter_16"),
    "olora": start_from_weights("olora"),
    "loftq": start_from_quantisation_error,
}
"""Method -> what attaches its adapter to the model."""


def changes_base(plan: TrainingPlan) -> bool:
    """Whether the adapter was taken out of the base weights, so that it doesn't fit the original ones."""
    return plan.method.type in ("pissa", "olora")


def start_folder(plan: TrainingPlan) -> Path:
    """Where the untrained adapter is kept: what is exported is the difference to it."""
    return Path(plan.checkpoint.folder) / "start-adapter"


def keep_start(plan: TrainingPlan, model: Any) -> None:
    """Write the untrained adapter, to be called before training begins or goes on."""
    if changes_base(plan):
        model.save_pretrained(start_folder(plan), selected_adapters=["default"], save_embedding_layers=False)
