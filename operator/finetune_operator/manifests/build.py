"""Everything that one FineTuneJob needs, in the order in which it is applied."""

from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.claims import build_cache_claim, build_output_claim
from finetune_operator.manifests.configmap import build_plan_configmap
from finetune_operator.manifests.gang import build_pod_group
from finetune_operator.manifests.job import build_job
from finetune_operator.manifests.metadata import Manifest
from finetune_operator.manifests.pod import build_requests
from finetune_operator.manifests.pytorchjob import build_pytorchjob
from finetune_operator.manifests.service import build_service
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.layout import Layout
from finetune_operator.run_state import RunState
from finetune_operator.settings import Settings


def build_manifests(
    job: FineTuneJob, decided: Decided, settings: Settings, layout: Layout, run: RunState | None = None
) -> list[Manifest]:
    """The workload last: a pod never waits for what comes after it."""
    build_workload = build_pytorchjob if job.spec.parallelism.backend == "PyTorchJob" else build_job
    manifests = (
        build_output_claim(job, decided, settings),
        build_cache_claim(job),
        build_plan_configmap(job, decided.plan),
        build_service(job),
        build_pod_group(job, build_requests(job, decided)),
        build_workload(job, decided, settings, layout, run or RunState()),
    )
    return [manifest for manifest in manifests if manifest is not None]
