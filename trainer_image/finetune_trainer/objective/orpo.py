"""Odds ratio preference optimisation: TRL's ORPOTrainer, set up from the plan."""

from types import SimpleNamespace
from typing import Any

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from finetune_api.plan import TrainingPlan
from finetune_trainer.data.encode import IGNORED
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.parts import Parts


class PreparedORPOTrainer(NeutralEvaluation, ORPOTrainer):  # type: ignore[misc]
    """ORPOTrainer on rows that are encoded already, with evaluations that leave no trace."""

    @staticmethod
    def tokenize_row(row: dict[str, list[int]]) -> dict[str, list[int]]:
        """ORPO's columns of a prepared row."""
        prompt = row["prompt_ids"]
        columns = {}
        for side in ("chosen", "rejected"):
            ids = prompt + row[f"{side}_ids"]
            columns[f"{side}_input_ids"] = ids
            columns[f"{side}_attention_mask"] = [1] * len(ids)
            columns[f"{side}_labels"] = [IGNORED] * len(prompt) + row[f"{side}_ids"]
        return columns

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """Without the logits of virtual tokens, which prompt methods put before those of the row."""

        def forward(input_ids: Any, **options: Any) -> Any:
            output = model(input_ids, **options)
            return SimpleNamespace(logits=output.logits[:, -input_ids.shape[1] :], aux_loss=output.get("aux_loss"))

        return super().concatenated_forward(forward, batch)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Counts both answers of a row: the Trainer looks for one column ``input_ids``."""
        for side in ("chosen", "rejected"):
            super()._track_num_input_tokens(
                {"input_ids": inputs[f"{side}_input_ids"], "attention_mask": inputs[f"{side}_attention_mask"]}
            )


def build_config(plan: TrainingPlan, arguments: dict[str, Any]) -> ORPOConfig:
    """ORPOConfig of the plan. As TRL has it, no module drops out."""
    return ORPOConfig(**arguments, beta=plan.objective.beta)


def build(config: ORPOConfig, parts: Parts) -> PreparedORPOTrainer:
    """The trainer on prepared rows of kind ``preference``."""
    return PreparedORPOTrainer(args=config, **parts.arguments)
