"""One registry of objectives: the module that builds the trainer of each."""

from importlib import import_module
from typing import Any

from transformers import PrinterCallback, Trainer

from finetune_api.objectives import ObjectiveType
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.model.adapter import finish_method
from finetune_trainer.objective.arguments import build_arguments
from finetune_trainer.objective.parts import Parts

_MODULES: dict[ObjectiveType, str] = {
    "sft": "sft",
    "pretrain": "sft",
    "dpo": "dpo",
    "orpo": "orpo",
    "kto": "kto",
    "reward": "reward",
    "ppo": "ppo",
    "rloo": "rloo",
    "grpo": "grpo",
}
"""Objective -> module of this package with ``build_config(plan, arguments)`` and ``build(config, parts)``; loaded when
it is needed, as TRL's trainers take seconds."""


def _module(plan: TrainingPlan) -> Any:
    return import_module(f"finetune_trainer.objective.{_MODULES[plan.objective.type]}")


def build_config(plan: TrainingPlan, has_validation: bool, resumed: bool) -> Any:
    """The TRL config of the plan's objective. Raises: InvalidInputError for settings that TRL refuses."""
    try:
        return _module(plan).build_config(plan, build_arguments(plan, has_validation, resumed))
    except ValueError as error:
        raise _refusal(error) from error


def build_trainer(config: Any, parts: Parts) -> Trainer:
    """The trainer, its adapter attached. Raises: InvalidInputError for settings that TRL or PEFT refuse."""
    try:
        trainer = _module(parts.plan).build(config, parts)
    except ValueError as error:
        raise _refusal(error) from error
    trainer.remove_callback(PrinterCallback)
    finish_method(parts.plan, trainer)
    return trainer


def _refusal(error: ValueError) -> InvalidInputError:
    return InvalidInputError(f"the plan is refused by TRL or PEFT: {error}")
