"""Group relative policy optimisation: TRL's GRPOTrainer, set up from the plan."""

from typing import Any

from trl import GRPOConfig, GRPOTrainer

from finetune_api.plan import TrainingPlan
from finetune_trainer.objective.parts import Parts
from finetune_trainer.objective.sampling import PreparedPrompts, build_sampling, sampling_options


class PreparedGRPOTrainer(PreparedPrompts, GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer on prepared prompts."""


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> GRPOConfig:
    """GRPOConfig of the plan; the loss is TRL's default, DAPO's (arXiv:2503.14476)."""
    return GRPOConfig(**arguments, **sampling_options(plan))


def build(config: GRPOConfig, parts: Parts) -> PreparedGRPOTrainer:
    """The trainer on prepared rows of kind ``prompts``."""
    return build_sampling(PreparedGRPOTrainer, config, parts)
