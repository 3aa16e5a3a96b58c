"""Kahneman-Tversky optimisation: TRL's KTOTrainer, set up from the plan."""

from typing import Any

from trl import KTOConfig, KTOTrainer
from trl.trainer.utils import global_then_local_main_first

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.frozen import build_beside_reference, reference_options
from finetune_trainer.objective.parts import Parts


class PreparedKTOTrainer(NeutralEvaluation, KTOTrainer):  # type: ignore[misc]
    """KTOTrainer on rows that are encoded already, with evaluations that leave no trace."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: KTOConfig, name: str) -> Any:
        """Adds the mismatched answers by which the distance to the reference is estimated, batch by batch as TRL does."""
        with global_then_local_main_first():
            return dataset.map(_mismatch_answers, batched=True, batch_size=args.per_device_train_batch_size)


def _mismatch_answers(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Each prompt gets the answer of the row before it, the first that of the last."""
    answers = rows["completion_ids"]
    return {"KL_completion_ids": [answers[-1], *answers[:-1]]}


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> KTOConfig:
    """KTOConfig of the plan. As TRL has it, no module drops out, and the rows come in the order of the dataset: the
    estimate of the distance to the reference goes by the rows of a batch.

    Raises: InvalidInputError for a batch of one row.
    """
    objective = plan.objective
    if plan.training.per_device_batch_size == 1:
        raise InvalidInputError(
            "training.perDeviceBatchSize 1: kto estimates the distance to the reference from prompts with the answers "
            "of other rows of their batch; set it to 2 or more"
        )
    return KTOConfig(
        **arguments,
        **reference_options(plan),
        max_length=None,
        beta=objective.beta,
        desirable_weight=objective.desirable_weight,
        undesirable_weight=objective.undesirable_weight,
        precompute_ref_log_probs=objective.precompute_reference,
    )


def build(config: KTOConfig, parts: Parts) -> Any:
    """The trainer on prepared rows of kind ``unpaired``."""
    return build_beside_reference(PreparedKTOTrainer, config, parts)
