"""From the plan's method to what is trained: the weights set free, or the adapter beside the frozen ones."""

from functools import partial
from typing import Any

from finetune_api.methods import METHODS, MethodType
from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.model.starts import STARTS, keep_start

_VARIANTS: dict[MethodType, dict[str, Any]] = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
"""Methods that are LoRA with a switch of PEFT's."""


def prepare_method(plan: TrainingPlan, model: Any) -> tuple[Any, Any]:
    """``(model, peft_config)``: the model made ready, and the adapter that TRL is to attach to it, if any.

    Raises: InvalidInputError for a method that this model, or the rest of the plan, doesn't allow.
    """
    method = plan.method
    _require_fitting_training(plan)
    if method.type == "full":
        return model, None
    if method.type == "freeze":
        from finetune_trainer.model.layers import train_last_layers

        train_last_layers(plan, model)
        return model, None
    try:
        config = build_adapter_config(plan)
        if method.resume_adapter is None and method.type not in STARTS:
            return model, config
        return _attach(plan, model, config), None
    except ValueError as error:
        raise InvalidInputError(f"method.type {method.type} can't be used with this model: {error}") from error


def finish_method(plan: TrainingPlan, trainer: Any) -> None:
    """What is left to do once TRL has the adapter."""
    method = plan.method
    if method.quantization is not None:
        trainer.model.set_adapter("default")
        # TRL puts QLoRA's adapters into bfloat16, whose 8 bits of mantissa swallow small updates.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if method.type == "ia3" and "ref" in trainer.model.peft_config:
        _copy_scales(trainer.model)
    if method.type in STARTS and trainer.is_world_process_zero():
        keep_start(plan, trainer.model)
    if method.type == "lora-plus":
        trainer.create_optimizer = partial(_create_loraplus_optimizer, plan, trainer)
    if method.type == "adalora":
        from finetune_trainer.model.adalora import RankBudget

        # First, so that its file is there before the checkpoint is completed.
        trainer.callback_handler.callbacks.insert(0, RankBudget())


def _copy_scales(model: Any) -> None:
    """Give the reference the scales of the adapter that training starts from: TRL copies modules only, and they aren't."""
    for name, parameter in model.named_parameters():
        if name.endswith(".default"):
            model.get_parameter(f"{name.removesuffix('.default')}.ref").data.copy_(parameter.data)


def build_adapter_config(plan: TrainingPlan) -> Any:
    """PEFT's config of the plan's adapter."""
    task = "SEQ_CLS" if OBJECTIVES[plan.objective.type].classifies else "CAUSAL_LM"
    return _BUILDERS[METHODS[plan.method.type].part](plan, task)


def _build_lora(plan: TrainingPlan, task: str) -> Any:
    from peft import AdaLoraConfig, LoraConfig

    lora = plan.method.lora
    assert lora is not None
    shared = {
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": _targets(lora.target_modules),
        "task_type": task,
    }
    if plan.method.type != "adalora":
        return LoraConfig(r=lora.rank, **shared, **_VARIANTS.get(plan.method.type, {}))
    assert lora.initial_rank is not None
    if lora.initial_rank <= lora.rank:
        raise InvalidInputError(
            f"method.initialRank: {lora.initial_rank} leaves adalora nothing to cut: set it above method.rank, {lora.rank}"
        )
    # The schedule is RankBudget's: only the Trainer knows the number of steps. So is the regularisation, which PEFT
    # adds to a loss that TRL doesn't use.
    return AdaLoraConfig(target_r=lora.rank, init_r=lora.initial_rank, total_step=1, orth_reg_weight=0.0, **shared)


def _build_ia3(plan: TrainingPlan, task: str) -> Any:
    from peft import IA3Config
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEED_FORWARD

    assert plan.method.ia3 is not None
    targets = plan.method.ia3.target_modules
    if targets is None:
        return IA3Config(task_type=task)
    feed_forward = {name for names in FEED_FORWARD.values() for name in names}
    if targets != ("all-linear",):
        feed_forward &= set(targets)
    return IA3Config(target_modules=_targets(targets), feedforward_modules=sorted(feed_forward), task_type=task)


def _build_prompt(plan: TrainingPlan, task: str) -> Any:
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    import finetune_trainer.model.prompts  # noqa: F401  PEFT's encoders, made to be resumed

    prompt = plan.method.prompt
    assert prompt is not None
    shared = {"num_virtual_tokens": prompt.virtual_tokens, "task_type": task}
    if plan.method.type == "prompt":
        # Lester et al. start from the embeddings of words; random values of unit variance are far off them.
        return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shared)
    if plan.method.type == "p-tuning":
        return PromptEncoderConfig(encoder_hidden_size=prompt.encoder_hidden_size, **shared)
    return PrefixTuningConfig(
        prefix_projection=plan.method.type == "prefix", encoder_hidden_size=prompt.encoder_hidden_size, **shared
    )


def _build_bottleneck(plan: TrainingPlan, task: str) -> Any:
    from finetune_trainer.model.bottleneck import BottleneckConfig

    bottleneck = plan.method.bottleneck
    assert bottleneck is not None
    return BottleneckConfig(
        size=bottleneck.size, placement=bottleneck.placement, dropout=bottleneck.dropout, task_type=task
    )


_BUILDERS = {"lora": _build_lora, "ia3": _build_ia3, "prompt": _build_prompt, "bottleneck": _build_bottleneck}


def _targets(names: tuple[str, ...]) -> str | list[str]:
    return "all-linear" if names == ("all-linear",) else list(names)


def _attach(plan: TrainingPlan, model: Any, config: Any) -> Any:
    """The model with the adapter that training starts from."""
    from transformers import set_seed

    # As TRL does before it attaches one.
    set_seed(plan.training.seed)
    if plan.method.resume_adapter is not None:
        from finetune_trainer.model.resumed import attach_trained

        attached = attach_trained(plan, model, config)
    else:
        attached = STARTS[plan.method.type](plan, model, config)
    if plan.method.quantization is not None:
        # TRL rounds trainable weights to bfloat16. finish_method() sets these free again.
        attached.requires_grad_(False)
    return attached


def _create_loraplus_optimizer(plan: TrainingPlan, trainer: Any, model: Any = None) -> Any:
    """The plan's optimizer in LoRA+'s groups; stands in for ``Trainer.create_optimizer``."""
    from peft.optimizers import create_loraplus_optimizer

    assert plan.method.lora is not None
    if trainer.optimizer is None:
        model = trainer.model if model is None else model
        kind, settings = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
        trainer.optimizer = create_loraplus_optimizer(
            model,
            kind,
            loraplus_lr_ratio=plan.method.lora.learning_rate_ratio,
            loraplus_weight_decay=plan.training.weight_decay,
            **settings,
        )
        # PEFT makes a group for each kind of weight, and FSDP takes no empty ones.
        trainer.optimizer.param_groups = [group for group in trainer.optimizer.param_groups if group["params"]]
    return trainer.optimizer


def _require_fitting_training(plan: TrainingPlan) -> None:
    """Raises: InvalidInputError for settings of the training that this method can't be trained under."""
    kind = plan.method.type
    if kind in ("prefix", "p-tuning-v2") and plan.training.gradient_checkpointing:
        raise InvalidInputError(
            f"training.gradientCheckpointing: true drops the keys and values that {kind} trains: set it to false, or "
            "use method.type: p-tuning"
        )
