"""Reward modelling: TRL's RewardTrainer, set up from the plan."""

from typing import Any

from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from finetune_api.plan import TrainingPlan
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.parts import Parts


class PreparedRewardTrainer(NeutralEvaluation, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer with evaluations that leave no trace."""


class JoiningCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Puts each answer behind its prompt: a score is read at the end of both."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        sides = ("chosen_ids", "rejected_ids")
        return super().torch_call([{side: row["prompt_ids"] + row[side] for side in sides} for row in examples])


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> RewardConfig:
    """RewardConfig of the plan. As TRL has it, no module drops out. Rows are cut already, none is left out here."""
    return RewardConfig(**arguments, max_length=None, remove_unused_columns=False)


def build(config: RewardConfig, parts: Parts) -> PreparedRewardTrainer:
    """The trainer of a sequence classifier of one label on prepared rows of kind ``preference``."""
    collator = JoiningCollator(pad_token_id=parts.tokenizer.pad_token_id)
    return PreparedRewardTrainer(args=config, data_collator=collator, **parts.arguments)
