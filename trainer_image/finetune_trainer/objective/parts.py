"""What every objective builds its trainer of."""

from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from finetune_api.plan import TrainingPlan
from finetune_trainer.data.prepare import PreparedData


@dataclass(frozen=True)
class Parts:
    """Loaded and prepared; an objective adds only its own."""

    plan: TrainingPlan
    model: Any
    """The base model, or the model with the adapter that the training starts from."""
    peft_config: Any
    """The adapter that TRL is to attach; None: the model is as it is to be trained."""
    tokenizer: Any
    data: PreparedData
    callbacks: list[TrainerCallback]

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructors of all of TRL's trainers take."""
        return {
            "model": self.model,
            "train_dataset": self.data.train,
            "eval_dataset": self.data.validation,
            "processing_class": self.tokenizer,
            "callbacks": self.callbacks,
            "peft_config": self.peft_config,
        }
