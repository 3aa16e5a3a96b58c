"""From the plan's method to what is trained: PEFT's config of the adapter, and what TRL and PEFT leave to do."""

from typing import Any

from finetune_api.plan import TrainingPlan


def prepare_method(plan: TrainingPlan, model: Any) -> tuple[Any, Any]:
    """``(model, peft_config)``: the model made ready, and the adapter that TRL is to attach to it, if any."""
    lora = plan.method.lora
    if lora is None:
        return model, None
    from peft import LoraConfig

    targets = lora.target_modules
    return model, LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        task_type="CAUSAL_LM",
    )


def finish_method(plan: TrainingPlan, trainer: Any) -> None:
    """What is left to do once TRL has attached the adapter."""
    if plan.method.quantization is not None:
        # TRL puts QLoRA's adapters into bfloat16, whose 8 bits of mantissa swallow small updates.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
