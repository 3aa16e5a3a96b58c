"""REINFORCE with a leave-one-out baseline: TRL's RLOOTrainer, set up from the plan."""

from typing import Any

from trl import RLOOConfig, RLOOTrainer

from finetune_api.plan import TrainingPlan
from finetune_trainer.objective.parts import Parts
from finetune_trainer.objective.sampling import PreparedPrompts, build_sampling, sampling_options


class PreparedRLOOTrainer(PreparedPrompts, RLOOTrainer):  # type: ignore[misc]
    """RLOOTrainer on prepared prompts."""


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> RLOOConfig:
    """RLOOConfig of the plan."""
    return RLOOConfig(**arguments, **sampling_options(plan))


def build(config: RLOOConfig, parts: Parts) -> PreparedRLOOTrainer:
    """The trainer on prepared rows of kind ``prompts``."""
    return build_sampling(PreparedRLOOTrainer, config, parts)
