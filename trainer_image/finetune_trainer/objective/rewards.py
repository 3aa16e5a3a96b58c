"""Rewards of sampled answers: functions by name, or ``module:function``, and reward models.

A reward function has the signature of TRL's: keywords ``prompts``, ``completions`` (text without special tokens),
``completion_ids``, and of each row ``reference`` (text, empty if the row has none) and its other fields; one number an
answer, None where it doesn't apply to the answer.
"""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from importlib import import_module
from typing import Any

import torch

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.objective.frozen import load_reward_model

RewardFunction = Callable[..., list[float | None]]

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_THOUGHT = re.compile(r"\s*<think>.+?</think>\s*\S.*", re.DOTALL)


def load_rewards(plan: TrainingPlan) -> list[RewardFunction]:
    """The plan's reward functions, and its reward model as one. Their sum is the reward.

    Raises: InvalidInputError when one of them doesn't exist or can't be loaded.
    """
    rewards = [_spread_fields(find_function(name)) for name in plan.objective.reward_functions]
    if plan.objective.reward_model is not None:
        rewards.append(RewardModel(*load_reward_model(plan)))
    return rewards


def require_references(plan: TrainingPlan, rows: Any) -> None:
    """Raises: InvalidInputError when a reward function compares with references and no row has one."""
    comparing = [name for name in plan.objective.reward_functions if name in COMPARING]
    if comparing and not any(rows["reference"]):
        raise InvalidInputError(
            f"objective.rewardFunctions {comparing[0]}: compares answers with the row's reference, and no row has one: "
            "add a column reference to the dataset"
        )


def find_function(name: str) -> RewardFunction:
    """A function of this module by its name, or ``module:function``. Raises: InvalidInputError naming what exists."""
    if ":" not in name:
        if name not in FUNCTIONS:
            raise InvalidInputError(
                f"objective.rewardFunctions: there is no {name}; there are {', '.join(FUNCTIONS)}, and module:function "
                "for one of your own"
            )
        return FUNCTIONS[name]
    module, _, attribute = name.partition(":")
    try:
        function: RewardFunction = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"objective.rewardFunctions {name}: {error}; the module has to be on the trainer image's Python path"
        ) from error
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise InvalidInputError(f"objective.rewardFunctions {name}: it is not a plain function")
    return function


def _spread_fields(function: RewardFunction) -> RewardFunction:
    """Each field of the rows as a keyword of its own, as TRL hands on the columns of a dataset."""

    @wraps(function)
    def spread(fields: list[str], **columns: Any) -> list[float | None]:
        rows = [json.loads(text) for text in fields]
        names = dict.fromkeys(name for row in rows for name in row)
        return function(**{name: [row.get(name) for row in rows] for name in names} | columns)

    return spread


class RewardModel:
    """The score of a frozen sequence classifier, read where the rows that it was trained on end."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model.eval()
        self._model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        self._tokenizer = tokenizer
        self._end = find_end(tokenizer)
        self.__name__ = "reward_model"

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        texts = [prompt + answer + self._end for prompt, answer in zip(prompts, completions, strict=True)]
        batch = self._tokenizer(
            text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
        ).to(self._model.device)
        with torch.inference_mode():
            scores: list[float | None] = self._model(**batch, use_cache=False).logits[:, 0].tolist()
        return scores


def find_end(tokenizer: Any) -> str:
    """What stands behind an answer: the close of the chat template's turn, or the end token."""
    if tokenizer.chat_template is None:
        return str(tokenizer.eos_token)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("ANSWER")[2]


def reward_exact_match(completions: list[str], reference: list[str], **_: Any) -> list[float | None]:
    """1 where the answer is the reference, whitespace at both ends aside, else 0."""
    return _compare(completions, reference, lambda answer, wanted: answer.strip() == wanted.strip())


def reward_reference_contained(completions: list[str], reference: list[str], **_: Any) -> list[float | None]:
    """1 where the reference stands somewhere in the answer, capitals aside, else 0."""
    return _compare(completions, reference, lambda answer, wanted: wanted.strip().casefold() in answer.casefold())


def reward_number_match(completions: list[str], reference: list[str], **_: Any) -> list[float | None]:
    """1 where the last number of the answer equals the last number of the reference, else 0 (as GSM8K is scored)."""
    return _compare(
        completions,
        reference,
        lambda answer, wanted: (last := _last_number(answer)) is not None and last == _last_number(wanted),
    )


def reward_word_overlap(completions: list[str], reference: list[str], **_: Any) -> list[float | None]:
    """F1 of the words that answer and reference share (as SQuAD is scored, arXiv:1606.05250)."""
    return _compare(completions, reference, _word_f1)


def reward_regex(completions: list[str], pattern: list[str | None] | None = None, **_: Any) -> list[float | None]:
    """1 where the whole answer matches the regular expression in the row's field ``pattern``, else 0."""
    patterns = pattern or [None] * len(completions)
    return [
        None if wanted is None else float(re.fullmatch(wanted, answer.strip(), re.DOTALL) is not None)
        for answer, wanted in zip(completions, patterns, strict=True)
    ]


def reward_think_format(completions: list[str], **_: Any) -> list[float | None]:
    """1 where the answer begins with ``<think>…</think>`` and goes on behind it, else 0 (DeepSeek-R1, arXiv:2501.12948)."""
    return [float(_THOUGHT.fullmatch(answer) is not None) for answer in completions]


def reward_json_valid(completions: list[str], **_: Any) -> list[float | None]:
    """1 where the answer is a JSON object or array, else 0."""
    return [float(_is_json(answer)) for answer in completions]


def penalise_length(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """-0.001 for each token of the answer: a thousand cost what a right answer earns."""
    return [-0.001 * len(ids) for ids in completion_ids]


def penalise_repetition(completions: list[str], **_: Any) -> list[float | None]:
    """Minus the share of word trigrams that stood in the answer before (Yeo et al. 2025, arXiv:2502.03373)."""
    return [-_repeated_share(answer.casefold().split()) for answer in completions]


COMPARING: dict[str, RewardFunction] = {
    "exact-match": reward_exact_match,
    "reference-contained": reward_reference_contained,
    "number-match": reward_number_match,
    "word-overlap": reward_word_overlap,
}
"""Functions that compare with the row's reference; they don't apply to rows without one."""

FUNCTIONS: dict[str, RewardFunction] = COMPARING | {
    "regex": reward_regex,
    "think-format": reward_think_format,
    "json-valid": reward_json_valid,
    "length-penalty": penalise_length,
    "repetition-penalty": penalise_repetition,
}
"""Reward functions by name."""


def _compare(answers: list[str], references: list[str], judge: Callable[[str, str], float]) -> list[float | None]:
    return [
        float(judge(answer, reference)) if reference else None
        for answer, reference in zip(answers, references, strict=True)
    ]


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _word_f1(answer: str, reference: str) -> float:
    given, wanted = answer.casefold().split(), reference.casefold().split()
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / max(1, len(given) + len(wanted))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _repeated_share(words: list[str]) -> float:
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
