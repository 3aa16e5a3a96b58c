"""The process's environment and the libraries' voices. Has to run before any Hugging Face library is imported."""

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api import names
from finetune_api.plan import ResolvedSource, TrainingPlan


def _sources(plan: TrainingPlan) -> list[ResolvedSource]:
    sources = [
        plan.model.source,
        plan.dataset.source,
        plan.dataset.validation_source,
        *(mixture.source for mixture in plan.dataset.mixtures),
        plan.method.resume_adapter,
        plan.objective.reference_model,
        plan.objective.reward_model,
    ]
    return [source for source in sources if source is not None]


def _needs_network(plan: TrainingPlan) -> bool:
    """Whether anything comes from a hub or goes there."""
    harness = plan.evaluation.harness
    return (
        any(source.kind == "hf" for source in _sources(plan))
        or plan.output.hub is not None
        or (harness is not None and not all(task.startswith("file://") for task in harness.tasks))
    )


def tensorboard_folder(plan: TrainingPlan) -> Path:
    """Where its logs go, unless the environment says otherwise."""
    return Path(plan.output.directory) / "tensorboard"


def prepare_environment(plan: TrainingPlan) -> None:
    """Telemetry off, offline unless the plan names the hub, caches below the plan's folder, no foreign progress bars."""
    os.environ.update(
        HF_HUB_DISABLE_TELEMETRY="1",
        DO_NOT_TRACK="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        TQDM_DISABLE="1",
        TOKENIZERS_PARALLELISM="false",
        TRANSFORMERS_VERBOSITY="error",
    )
    if plan.parallelism.device == "cpu":
        # Nothing here compiles on the CPU but bitsandbytes, at its import: seconds for kernels that the image has no compiler for.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # accelerate imports DeepSpeed to look at a model's type, and DeepSpeed then searches for its device aloud.
    os.environ.setdefault("DS_ACCELERATOR", plan.parallelism.device)
    os.environ.setdefault(names.ENV_HF_HOME, str(Path(plan.cache_directory) / "huggingface"))
    if not _needs_network(plan):
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if "tensorboard" in plan.observability.trackers:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(tensorboard_folder(plan)))
    if "wandb" in plan.observability.trackers:
        os.environ.setdefault("WANDB_PROJECT", plan.job.namespace)
    else:
        os.environ["WANDB_MODE"] = "disabled"


def quiet_libraries() -> None:
    """Only errors of the libraries reach the log: their warnings are about choices that the plan has made.

    Before they are imported: some speak while they load.
    """
    warnings.filterwarnings("ignore")
    for name in (
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "bitsandbytes",
        "torch",
        "huggingface_hub",
        "lm_eval",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def loading_libraries() -> Iterator[None]:
    """What is imported here stays to the end: garbage is looked for neither meanwhile nor among it later, which would take
    a seventh of the time that the imports take, and a second of each run."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
