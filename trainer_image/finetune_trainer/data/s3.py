"""A plan whose dataset is on this machine."""

from functools import partial

from finetune_api.plan import TrainingPlan
from finetune_trainer.fetch import fetch_source


def fetch_sources(plan: TrainingPlan) -> TrainingPlan:
    """The plan with each dataset source in S3 replaced by its copy in the cache. Raises: as ``fetch_source``."""
    dataset, fetch = plan.dataset, partial(fetch_source, plan=plan, field="dataset")
    validation = dataset.validation_source
    mixtures = (mixture.model_copy(update={"source": fetch(mixture.source)}) for mixture in dataset.mixtures)
    changes = {
        "source": fetch(dataset.source),
        "validation_source": None if validation is None else fetch(validation),
        "mixtures": tuple(mixtures),
    }
    return plan.model_copy(update={"dataset": dataset.model_copy(update=changes)})
