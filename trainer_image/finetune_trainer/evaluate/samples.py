"""Answers to a few prompts, by the base model and by the trained one."""

import json
from pathlib import Path
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.files import write_atomically

_BATCH = 8


def answer_prompts(plan: TrainingPlan, model: Any, tokenizer: Any) -> list[str]:
    """The model's greedy answers to ``evaluation.samples``, without the prompts."""
    import torch

    prompts = [_render_prompt(tokenizer, prompt) for prompt in plan.evaluation.samples]
    special = tokenizer.chat_template is None
    model.eval()
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        batch = tokenizer(
            prompts[start : start + _BATCH],
            add_special_tokens=special,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(next(model.parameters()).device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=plan.evaluation.sample_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def answer_before(plan: TrainingPlan, model: Any, tokenizer: Any) -> list[str]:
    """The base model's answers; kept beside the checkpoints, so that a resumed run doesn't ask it again."""
    path = Path(plan.checkpoint.directory) / "samples-before.json"
    asked = {"runId": plan.job.run_id, "prompts": list(plan.evaluation.samples)}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return list(kept["answers"])
    answers = answer_prompts(plan, model, tokenizer)
    write_atomically(path, json.dumps({"asked": asked, "answers": answers}, ensure_ascii=False, indent=2) + "\n")
    return answers


def _render_prompt(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        return prompt
    message = {"role": "user", "content": prompt}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
