"""Supervised fine-tuning: TRL's SFTTrainer, set up from the plan."""

from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from finetune_api.plan import TrainingPlan
from finetune_trainer.data.prepare import PreparedData
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.evaluate.loss import EvaluationAbandonedError


class NeutralEvaluationTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose evaluations leave no trace in the random state.

    A data loader draws from torch's generator when it starts, so with TRL alone an evaluation changes the dropout of
    the steps after it, and a run that resumes behind an evaluation differs from one that never stopped.
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                return super().evaluate(*args, **kwargs)
            except EvaluationAbandonedError:
                return {}


def build_config(plan: TrainingPlan, has_validation: bool, resumed: bool) -> SFTConfig:
    """SFTConfig of the plan. Checkpoints are left to ``checkpoint/``, texts are prepared already."""
    training = plan.training
    length = {"max_steps": training.max_steps} if training.max_steps else {"num_train_epochs": training.epochs}
    evaluation: dict[str, Any] = {"eval_strategy": "no"}
    if has_validation:
        evaluation = {"eval_strategy": "steps", "eval_steps": plan.evaluation.every_steps}
        if plan.evaluation.every_steps is None:
            evaluation = {"eval_strategy": "epoch"}
        # The checkpoint's history has the loss before the first step.
        evaluation["eval_on_start"] = not resumed
    return SFTConfig(
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
        logging_steps=training.logging_steps,
        # A NaN has to be seen, not replaced by the mean of the losses before it.
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        **evaluation,
        save_strategy="no",
        report_to=list(plan.observability.trackers) or "none",
        disable_tqdm=True,
        log_level="error",
        max_length=training.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def build_trainer(
    plan: TrainingPlan,
    model: Any,
    tokenizer: Any,
    data: PreparedData,
    callbacks: list[TrainerCallback],
    resumed: bool,
) -> NeutralEvaluationTrainer:
    """The trainer, its adapter attached. Raises: InvalidInputError for settings that TRL or PEFT refuse."""
    try:
        config = build_config(plan, data.validation is not None, resumed)
        trainer = NeutralEvaluationTrainer(
            model=model,
            args=config,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=_adapter_config(plan),
        )
    except ValueError as error:
        raise InvalidInputError(f"the plan is refused by TRL or PEFT: {error}") from error
    trainer.remove_callback(PrinterCallback)
    if plan.method.quantization is not None:
        # TRL puts QLoRA's adapters into bfloat16, whose 8 bits of mantissa swallow small updates.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def _adapter_config(plan: TrainingPlan) -> Any:
    if plan.method.lora is None:
        return None
    from peft import LoraConfig

    lora = plan.method.lora
    targets = lora.target_modules
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        task_type="CAUSAL_LM",
    )
