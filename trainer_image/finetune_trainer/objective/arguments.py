"""The plan's hyperparameters as fields of transformers' TrainingArguments: what all objectives have in common."""

import copy
from importlib.util import find_spec
from typing import Any

from finetune_api.memory import OFFLOADING_OBJECTIVES, find_search_refusal
from finetune_api.packing import PackingSetting, find_packing_refusal
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError


def build_arguments(plan: TrainingPlan, has_validation: bool, resumed: bool) -> dict[str, Any]:
    """Keyword arguments of any TRL config. Checkpoints are left to ``checkpoint/``.

    Raises: InvalidInputError for settings that the objective, the method or this machine can't have.
    """
    _require_packable(plan)
    _require_machine(plan)
    training = plan.training
    length = {"max_steps": training.max_steps} if training.max_steps else {"num_train_epochs": training.epochs}
    evaluation: dict[str, Any] = {"eval_strategy": "no"}
    if has_validation:
        evaluation = {"eval_strategy": "steps", "eval_steps": plan.evaluation.every_steps}
        if plan.evaluation.every_steps is None:
            evaluation = {"eval_strategy": "epoch"}
        # The checkpoint's history has the loss before the first step.
        evaluation["eval_on_start"] = not resumed
    return dict(
        output_dir=plan.checkpoint.folder,
        run_name=plan.job.name,
        **length,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup_ratio,
        weight_decay=training.weight_decay,
        per_device_train_batch_size=training.per_device_batch_size,
        per_device_eval_batch_size=training.per_device_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        **({"activation_offloading": True} if training.activation_offload else {}),
        use_liger_kernel=training.fused_kernels,
        neftune_noise_alpha=training.neftune_alpha,
        optim=training.optimizer,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        tf32=(training.precision == "tf32") if plan.parallelism.device == "cuda" else None,
        use_cpu=plan.parallelism.device == "cpu",
        ddp_find_unused_parameters=False,
        dataloader_num_workers=training.data_loader_workers,
        logging_steps=training.logging_steps,
        # A NaN has to be seen, not replaced by the mean of the losses before it.
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        **evaluation,
        save_strategy="no",
        report_to=list(plan.observability.trackers) or "none",
        disable_tqdm=True,
        log_level="error",
        **_build_engine(plan),
    )


def _build_engine(plan: TrainingPlan) -> dict[str, Any]:
    """What tells transformers of DeepSpeed or FSDP. It writes into what it is given, so these are copies.

    Raises: InvalidInputError for what the engine can't share out, or this machine can't offload.
    """
    parallelism, precision = plan.parallelism, plan.training.precision
    if parallelism.deepspeed is not None:
        halves = {"bf16": "bfloat16", "fp16": "float16"}
        if precision in halves and plan.model.dtype != halves[precision]:
            raise InvalidInputError(
                f"training.precision {precision}: DeepSpeed keeps the model's weights in it, and model.dtype is "
                f"{plan.model.dtype}: set model.dtype: {halves[precision]}, or parallelism.strategy: fsdp"
            )
        return {"deepspeed": copy.deepcopy(parallelism.deepspeed)}
    if parallelism.fsdp is None:
        return {}
    if plan.method.quantization is not None and plan.method.quantization.bits == 8:
        raise InvalidInputError(
            "method.quantization.bits 8: FSDP can't share out 8-bit weights: use bits: 4, or parallelism.strategy: zero3"
        )
    fsdp = copy.deepcopy(parallelism.fsdp)
    if fsdp["cpu_offload"] and parallelism.device == "cpu":
        raise InvalidInputError(
            "parallelism.offload.parameters cpu: without a GPU all is in host memory already: use none"
        )
    replicas = fsdp.pop("dp_replicate_size", 1)
    if replicas == 1:
        return {"fsdp": True, "fsdp_config": fsdp}
    from accelerate.parallelism_config import ParallelismConfig

    mesh = ParallelismConfig(dp_replicate_size=replicas, dp_shard_size=parallelism.world_size // replicas)
    return {"fsdp": True, "fsdp_config": fsdp, "parallelism_config": mesh}


def _require_packable(plan: TrainingPlan) -> None:
    settings: dict[PackingSetting, Any] = {}
    if plan.training.packing != "none":
        settings["packing"] = plan.training.packing
    if plan.training.padding_free:
        settings["paddingFree"] = "true"
    for setting, value in settings.items():
        refusal = find_packing_refusal(setting, plan.method.type, plan.objective.type, plan.dataset.streaming)
        if refusal is not None:
            raise InvalidInputError(f"training.{setting} {value}: {refusal.reason}: {refusal.instead}")


def _require_machine(plan: TrainingPlan) -> None:
    training, on_cpu = plan.training, plan.parallelism.device == "cpu"
    if training.fused_kernels and on_cpu:
        raise InvalidInputError("training.fusedKernels true: the kernels run on GPUs only: use false")
    if training.fused_kernels and find_spec("liger_kernel") is None:
        raise InvalidInputError(
            "training.fusedKernels true: the trainer image lacks the package liger-kernel: build the image with "
            "requirements/kernels.txt, or use false"
        )
    if training.activation_offload and on_cpu:
        raise InvalidInputError(
            "training.activationOffload true: without a GPU the activations are in host memory already: use false"
        )
    if training.activation_offload and plan.objective.type not in OFFLOADING_OBJECTIVES:
        raise InvalidInputError(
            f"training.activationOffload true: TRL's trainer of objective.type {plan.objective.type} can't: use "
            "training.gradientCheckpointing: true"
        )
    refusal = find_search_refusal(plan.objective.type, plan.parallelism.strategy, plan.dataset.streaming)
    if training.batch_search and refusal is not None:
        raise InvalidInputError(f"training.autoFindBatchSize true: {refusal}: leave it out")
