"""Direct preference optimisation: TRL's DPOTrainer, set up from the plan."""

from typing import Any

from trl import DPOConfig, DPOTrainer

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.frozen import build_beside_reference, reference_options
from finetune_trainer.objective.parts import Parts


class PreparedDPOTrainer(NeutralEvaluation, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on rows that are encoded already, with evaluations that leave no trace."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> DPOConfig:
    """DPOConfig of the plan. As TRL has it, no module drops out: the reference would differ by noise.

    Raises: InvalidInputError for a loss whose settings can't be.
    """
    objective = plan.objective
    if "exo_pair" in objective.losses and objective.label_smoothing == 0:
        raise InvalidInputError(
            "objective.losses: exo_pair takes the logarithm of objective.labelSmoothing (is 0): set it above 0, the "
            "paper's value is 0.001"
        )
    return DPOConfig(
        **arguments,
        **reference_options(plan),
        max_length=None,
        beta=objective.beta,
        loss_type=list(objective.losses),
        loss_weights=list(objective.loss_weights) or None,
        label_smoothing=objective.label_smoothing,
        precompute_ref_log_probs=objective.precompute_reference,
    )


def build(config: DPOConfig, parts: Parts) -> Any:
    """The trainer on prepared rows of kind ``preference``."""
    return build_beside_reference(PreparedDPOTrainer, config, parts)
