"""The plan's hyperparameters as fields of transformers' TrainingArguments: what all objectives have in common."""

from typing import Any

from finetune_api.plan import TrainingPlan


def build_arguments(plan: TrainingPlan, has_validation: bool, resumed: bool) -> dict[str, Any]:
    """Keyword arguments of any TRL config. Checkpoints are left to ``checkpoint/``."""
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
        output_dir=plan.checkpoint.directory,
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
    )
