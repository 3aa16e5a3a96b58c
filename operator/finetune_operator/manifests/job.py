"""The batch/v1 Job: one pod that trains."""

from finetune_api import names
from finetune_api.kubernetes import parse_duration
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.failure_policy import build_pod_failure_policy
from finetune_operator.manifests.metadata import Manifest, build_metadata, job_name
from finetune_operator.manifests.pod import build_pod_template
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.layout import Layout
from finetune_operator.settings import Settings


def build_job(job: FineTuneJob, decided: Decided, settings: Settings, layout: Layout, restarts: int = 0) -> Manifest:
    """``restarts``: how much of backoffLimit earlier workloads of this FineTuneJob used up."""
    policy = job.spec.run_policy
    metadata = build_metadata(job, job_name(job))
    metadata["annotations"] = {names.ANNOTATION_PLAN_HASH: decided.plan.training_hash()}
    spec: Manifest = {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": max(0, policy.backoff_limit - restarts),
        "podFailurePolicy": build_pod_failure_policy(),
        "podReplacementPolicy": "Failed",  # never two pods on one output
        "suspend": policy.suspend,
        "template": build_pod_template(job, decided, settings, layout),
    }
    if policy.active_deadline is not None:
        spec["activeDeadlineSeconds"] = parse_duration(policy.active_deadline)
    if policy.ttl_after_finished is not None:
        spec["ttlSecondsAfterFinished"] = parse_duration(policy.ttl_after_finished)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
