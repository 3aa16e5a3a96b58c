"""What TRL's trainers that sample answers have in common: groups of answers to prepared prompts."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.objective.evaluation import NeutralEvaluation
from finetune_trainer.objective.frozen import reference_options
from finetune_trainer.objective.parts import Parts
from finetune_trainer.objective.rewards import load_rewards, require_references


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """RepeatSampler in which an epoch's order doesn't hang on how many epochs this process has iterated before.

    TRL's draws on from one generator, so that a resumed run would begin with the order of the first epoch.
    """

    def __init__(self, epoch: Callable[[], int], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed)
        for _ in range(self._epoch()):
            torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


class PreparedPrompts(NeutralEvaluation):
    """Mixed into GRPOTrainer and RLOOTrainer: prompts are encoded already, and a run resumes exactly."""

    state: Any

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        self._prompt_ids = [row["prompt_ids"] for row in inputs]
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Their prepared ids: of a rendered chat template, the tokenizer would begin with a second start token."""
        return self._prompt_ids, None, {}

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return EpochSampler(
            lambda: int(self.state.epoch or 0),
            sampler.data_source,
            sampler.mini_repeat_count,
            sampler.batch_size,
            sampler.repeat_count,
            seed=sampler.seed,
        )


def sampling_options(plan: TrainingPlan) -> dict[str, Any]:
    """Fields that GRPOConfig and RLOOConfig share. Validation samples as many answers a prompt as fit its batches."""
    training, generation = plan.training, plan.objective.generation
    assert generation is not None
    validated = training.per_device_batch_size * plan.parallelism.world_size
    return dict(
        **reference_options(plan),
        beta=plan.objective.beta,
        num_generations=generation.completions,
        num_generations_eval=math.gcd(generation.completions, validated),
        max_completion_length=generation.max_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
    )


def count_prompts(plan: TrainingPlan) -> int:
    """Prompts that an optimiser step answers."""
    training, generation = plan.training, plan.objective.generation
    assert generation is not None
    answers = training.per_device_batch_size * training.gradient_accumulation * plan.parallelism.world_size
    return answers // generation.completions


def build_sampling(trainer_class: Any, config: Any, parts: Parts) -> Any:
    """The trainer on prepared rows of kind ``prompts``. Raises: InvalidInputError when they are too few for a step."""
    plan, rows = parts.plan, parts.data.train
    if len(rows) < count_prompts(plan):
        raise InvalidInputError(
            f"dataset {plan.dataset.source.uri}: {len(rows)} rows for training, and a step answers {count_prompts(plan)} "
            "prompts: lower training.globalBatchSize, raise objective.generation.completions, or add rows"
        )
    require_references(plan, rows)
    return trainer_class(args=config, reward_funcs=load_rewards(plan), **parts.arguments)
