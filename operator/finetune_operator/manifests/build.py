"""Everything that one FineTuneJob needs, in the order in which it is applied."""

from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.claims import build_cache_claim, build_output_claim
from finetune_operator.manifests.configmap import build_plan_configmap
from finetune_operator.manifests.job import build_job
from finetune_operator.manifests.metadata import Manifest
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.layout import Layout
from finetune_operator.settings import Settings


def build_manifests(
    job: FineTuneJob, decided: Decided, settings: Settings, layout: Layout, restarts: int = 0
) -> list[Manifest]:
    """Claims first, the Job last: a pod never waits for what comes after it."""
    manifests = (
        build_output_claim(job, decided, settings),
        build_cache_claim(job),
        build_plan_configmap(job, decided.plan),
        build_job(job, decided, settings, layout, restarts),
    )
    return [manifest for manifest in manifests if manifest is not None]
