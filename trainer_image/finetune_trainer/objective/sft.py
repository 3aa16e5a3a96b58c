"""Supervised fine-tuning and continued pretraining: TRL's SFTTrainer, set up from the plan."""

from typing import Any

from trl import SFTConfig, SFTTrainer

from finetune_api.plan import TrainingPlan
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.parts import Parts


class NeutralSFTTrainer(NeutralEvaluation, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with evaluations that leave no trace."""


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> SFTConfig:
    """SFTConfig of the plan. Texts are prepared already."""
    return SFTConfig(
        **arguments, max_length=plan.training.max_length, dataset_kwargs={"skip_prepare_dataset": True}
    )


def build(config: SFTConfig, parts: Parts) -> NeutralSFTTrainer:
    """The trainer on prepared rows of kind ``language``."""
    return NeutralSFTTrainer(
        model=parts.model,
        args=config,
        train_dataset=parts.data.train,
        eval_dataset=parts.data.validation,
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
        peft_config=parts.peft_config,
    )
