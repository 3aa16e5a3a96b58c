"""Greedy answers of a model to prompts that are tokens already."""

from typing import Any

_BATCH = 8


def generate_answers(model: Any, tokenizer: Any, prompts: list[list[int]], max_tokens: int) -> list[str]:
    """The model's answers without the prompts, at most ``max_tokens`` new tokens each."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        batch = tokenizer.pad(
            {"input_ids": prompts[start : start + _BATCH]}, padding_side="left", return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers
