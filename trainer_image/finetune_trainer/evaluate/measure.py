"""All figures of the evaluation, before and after training."""

import math
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.evaluate.gates import compares_with_base
from finetune_trainer.evaluate.harness import run_harness
from finetune_trainer.evaluate.kept import keep
from finetune_trainer.evaluate.metrics import Question, measure_answers


def measure_after(plan: TrainingPlan, model: Any, tokenizer: Any, questions: list[Question]) -> dict[str, float]:
    """The trained model's figures, all but those of the validation loss."""
    figures = measure_answers(plan, model, tokenizer, questions)
    if plan.evaluation.harness is not None:
        figures |= run_harness(plan, model, tokenizer)
    return figures


def measure_before(plan: TrainingPlan, model: Any, tokenizer: Any, questions: list[Question]) -> dict[str, float]:
    """The base model's figures, the harness's only where a gate compares with them; kept as ``answer_before`` keeps."""

    def measure() -> dict[str, float]:
        figures = measure_answers(plan, model, tokenizer, questions)
        return figures | (run_harness(plan, model, tokenizer) if compares_with_base(plan) else {})

    asked = {
        "evaluation": plan.evaluation.model_dump(mode="json", by_alias=True),
        "questions": [[question.prompt, question.answer] for question in questions],
    }
    return dict(keep(plan, "evaluation-before.json", asked, measure))


def describe_figures(before: dict[str, float], after: dict[str, float]) -> str:
    """The figures for a person, those before training where they were taken."""
    told = [f"{name} {f'{before[name]:.4g} -> ' if name in before else ''}{value:.4g}" for name, value in after.items()]
    return f"evaluation: {', '.join(told)}"


def add_loss(plan: TrainingPlan, figures: dict[str, float], loss: float | None) -> dict[str, float]:
    """The figures with the validation loss and what follows from it; those that are no number are left out."""
    if loss is not None:
        figures = {"loss": loss, **figures}
        if "perplexity" in plan.evaluation.metrics:
            # Beyond it lies no float; nor any use.
            figures["perplexity"] = math.exp(min(loss, 700.0))
    return {name: value for name, value in figures.items() if math.isfinite(value)}
