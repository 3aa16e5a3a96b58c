"""The ConfigMap that carries the plan to the trainer."""

from finetune_api import names
from finetune_api.plan import TrainingPlan
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest, build_metadata, plan_name


def build_plan_configmap(job: FineTuneJob, plan: TrainingPlan) -> Manifest:
    """Immutable: a run's plan never changes under it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(job, plan_name(job)),
        "immutable": True,
        "data": {names.PLAN_KEY: plan.to_json()},
    }
