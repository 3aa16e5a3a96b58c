"""Text metrics: greedy answers to validation rows against the rows' own, and how many tokens are predicted rightly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.objectives import OBJECTIVES
from finetune_api.plan import TextMetric, TrainingPlan
from finetune_trainer.data.encode import IGNORED
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.evaluate.answers import generate_answers

_FIGURES: dict[TextMetric, tuple[str, ...]] = {
    "perplexity": ("perplexity",),
    "token-accuracy": ("token-accuracy",),
    "bleu": ("bleu",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "exact-match": ("exact-match",),
}
"""Names of the figures that a metric gives."""


@dataclass(frozen=True)
class Question:
    """One validation row: what the model is given and what it should say."""

    prompt: list[int]
    answer: list[int]


def list_figures(plan: TrainingPlan) -> list[str]:
    """Names of the figures that ``evaluation.metrics`` gives."""
    return [figure for metric in plan.evaluation.metrics for figure in _FIGURES[metric]]


def read_questions(plan: TrainingPlan, tokenizer: Any, rows: Any) -> list[Question]:
    """The first ``evaluation.metricRows`` rows that have a prompt and an answer; none when no metric reads them.

    Raises: InvalidInputError when there is no such row.
    """
    if not set(plan.evaluation.metrics) - {"perplexity"}:
        return []
    kind = OBJECTIVES[plan.objective.type].rows
    questions = []
    for row in rows if rows is not None else ():
        question = _READERS[kind](row, tokenizer)
        if question.prompt and question.answer:
            questions.append(question)
        if len(questions) == plan.evaluation.metric_rows:
            break
    if not questions:
        raise InvalidInputError(
            f"evaluation.metrics {', '.join(plan.evaluation.metrics)}: no validation row has a prompt and an answer to "
            "it: set dataset.validation and, for sft, objective.responseOnly: true, or leave all but perplexity out"
        )
    return questions


def measure_answers(plan: TrainingPlan, model: Any, tokenizer: Any, questions: list[Question]) -> dict[str, float]:
    """The figures of ``evaluation.metrics`` on the questions, all but perplexity."""
    metrics = set(plan.evaluation.metrics)
    figures: dict[str, float] = {}
    if "token-accuracy" in metrics:
        figures["token-accuracy"] = _token_accuracy(model, questions)
    if wanted := [metric for metric in plan.evaluation.metrics if metric in _SCORES]:
        references = [tokenizer.decode(question.answer, skip_special_tokens=True).strip() for question in questions]
        # As long as the longest answer, which has its end in it: whoever says more by then is wrong.
        longest = max(len(question.answer) for question in questions)
        answers = generate_answers(model, tokenizer, [question.prompt for question in questions], longest)
        for metric in wanted:
            figures |= _SCORES[metric](answers, references)
    return figures


def last_span(labels: list[int]) -> tuple[int, int]:
    """Start and end of the last run of supervised tokens; both 0 when there is none."""
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORED:
        start -= 1
    return start, end


def _read_language(row: dict[str, Any], tokenizer: Any) -> Question:
    start, end = last_span(row["labels"])
    return Question(row["input_ids"][:start], row["input_ids"][start:end])


def _read_preference(row: dict[str, Any], tokenizer: Any) -> Question:
    return Question(row["prompt_ids"], row["chosen_ids"])


def _read_unpaired(row: dict[str, Any], tokenizer: Any) -> Question:
    return Question(row["prompt_ids"], row["completion_ids"] if row["label"] else [])


def _read_prompt(row: dict[str, Any], tokenizer: Any) -> Question:
    reference = tokenizer(row["reference"], add_special_tokens=False)["input_ids"] if row["reference"] else []
    return Question(row["prompt_ids"], reference)


_READERS: dict[str, Callable[[dict[str, Any], Any], Question]] = {
    "language": _read_language,
    "preference": _read_preference,
    "unpaired": _read_unpaired,
    "prompts": _read_prompt,
}


def _token_accuracy(model: Any, questions: list[Question]) -> float:
    """Share of the answers' tokens that are the likeliest ones after all before them."""
    right = sum(int(hits.sum()) for hits in _hits(model, questions))
    return right / sum(len(question.answer) for question in questions)


def _hits(model: Any, questions: list[Question]) -> Iterator[Any]:
    import torch

    model.eval()
    device = next(model.parameters()).device
    for question in questions:
        ids = torch.tensor([question.prompt + question.answer], device=device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        # Prompt methods may answer for their virtual tokens, too: the answer is what stands last.
        predicted = logits[0, -len(question.answer) - 1 : -1].argmax(-1)
        yield predicted == ids[0, -len(question.answer) :]


def _bleu(answers: list[str], references: list[str]) -> dict[str, float]:
    from sacrebleu import corpus_bleu

    return {"bleu": float(corpus_bleu(answers, [references]).score)}


def _rouge(answers: list[str], references: list[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    names = list(_FIGURES["rouge"])
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: sum(float(score[name].fmeasure) for score in scores) / len(scores) for name in names}


def _exact_match(answers: list[str], references: list[str]) -> dict[str, float]:
    matches = [answer == reference for answer, reference in zip(answers, references, strict=True)]
    return {"exact-match": sum(matches) / len(matches)}


_SCORES: dict[str, Callable[[list[str], list[str]], dict[str, float]]] = {
    "bleu": _bleu,
    "rouge": _rouge,
    "exact-match": _exact_match,
}
