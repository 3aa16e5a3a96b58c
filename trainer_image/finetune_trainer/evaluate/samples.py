"""Answers to a few prompts, by the base model and by the trained one."""

from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.evaluate.answers import generate_answers
from finetune_trainer.evaluate.kept import keep


def answer_prompts(plan: TrainingPlan, model: Any, tokenizer: Any) -> list[str]:
    """The model's greedy answers to ``evaluation.samples``, without the prompts."""
    special = tokenizer.chat_template is None
    texts = [_render_prompt(tokenizer, prompt) for prompt in plan.evaluation.samples]
    prompts = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    return generate_answers(model, tokenizer, prompts, plan.evaluation.sample_tokens)


def answer_before(plan: TrainingPlan, model: Any, tokenizer: Any) -> list[str]:
    """The base model's answers; kept beside the checkpoints, so that a resumed run doesn't ask it again."""
    asked = {"prompts": list(plan.evaluation.samples)}
    return list(keep(plan, "samples-before.json", asked, lambda: answer_prompts(plan, model, tokenizer)))


def _render_prompt(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        return prompt
    message = {"role": "user", "content": prompt}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
