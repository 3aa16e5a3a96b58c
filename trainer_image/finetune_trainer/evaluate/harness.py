"""EleutherAI's lm-evaluation-harness on the model in memory."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune_api.plan import HarnessPlan, TrainingPlan
from finetune_trainer.errors import InvalidInputError

_FILE = "file://"


def list_harness_figures(harness: HarnessPlan) -> list[str]:
    """Names of the figures that the tasks give, ``harness/<task>/<metric>``; groups may add means of theirs.

    Raises: InvalidInputError for a task that can't be loaded.
    """
    try:
        tasks = _task_manager(harness).load(_names(harness))["tasks"]
    except (KeyError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"evaluation.harness.tasks {', '.join(harness.tasks)}: {error}; name tasks of lm-eval, or the definition of "
            "one as file:///path.yaml"
        ) from error
    return [f"harness/{name}/{metric}" for name, task in tasks.items() for metric in task.aggregation()]


def run_harness(plan: TrainingPlan, model: Any, tokenizer: Any) -> dict[str, float]:
    """Figures of the tasks. Where a task filters the answers first, the filter's name stands behind the metric's."""
    import lm_eval  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    harness = plan.evaluation.harness
    assert harness is not None
    with _unchanged_randomness():
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=plan.training.per_device_batch_size),
            tasks=_names(harness),
            task_manager=_task_manager(harness),
            num_fewshot=harness.fewshot,
            limit=harness.limit,
            bootstrap_iters=0,
            log_samples=False,
        )
    return {
        f"harness/{task}/{name.removesuffix(',none')}": float(value)
        for task, figures in results["results"].items()
        for name, value in figures.items()
        if isinstance(value, int | float) and "," in name and "_stderr," not in name
    }


def _names(harness: HarnessPlan) -> list[str]:
    return [task.removeprefix(_FILE) for task in harness.tasks]


def _task_manager(harness: HarnessPlan) -> Any:
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    # To index the thousands that come with the harness takes seconds.
    return TaskManager(include_defaults=not all(task.startswith(_FILE) for task in harness.tasks))


@contextmanager
def _unchanged_randomness() -> Iterator[None]:
    """The harness seeds every generator; the training after it must draw as if it had not been there."""
    import numpy
    import torch

    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    numpy.random.set_state(arrays)
