"""A plan whose dataset is on this machine."""

from finetune_api.plan import TrainingPlan
from finetune_trainer.fetch import fetch_source


def fetch_sources(plan: TrainingPlan) -> TrainingPlan:
    """The plan with each dataset source in S3 replaced by its copy in the cache. Raises: as ``fetch_source``."""
    dataset = plan.dataset
    validation = dataset.validation_source
    mixtures = (
        mixture.model_copy(update={"source": fetch_source(mixture.source, plan, "dataset")})
        for mixture in dataset.mixtures
    )
    changes = {
        "source": fetch_source(dataset.source, plan, "dataset"),
        "validation_source": None if validation is None else fetch_source(validation, plan, "dataset"),
        "mixtures": tuple(mixtures),
    }
    return plan.model_copy(update={"dataset": dataset.model_copy(update=changes)})
