"""Names, labels and owner of everything that belongs to a FineTuneJob."""

from typing import Any

from finetune_api import names
from finetune_api.spec import FineTuneJob
from finetune_operator.plan.decide import UNBORN_UID, Decided
from finetune_operator.run_state import RunState

Manifest = dict[str, Any]


def name_kind(manifest: Manifest) -> str:
    """The manifest's kind, as ``kind.group`` where several groups have one of that name."""
    kind, api_version = manifest["kind"], manifest["apiVersion"]
    return f"{kind}.{api_version.partition('/')[0]}" if kind == "PodGroup" else kind


def job_name(job: FineTuneJob) -> str:
    """Name of the workload."""
    return job.metadata.name


def plan_name(job: FineTuneJob) -> str:
    """Name of the ConfigMap with the plan."""
    return f"{job.metadata.name}-plan"


def output_claim_name(job: FineTuneJob) -> str:
    """Name of the claim made for the output."""
    return f"{job.metadata.name}-output"


def cache_claim_name(job: FineTuneJob) -> str:
    """Name of the claim made for the model cache."""
    return f"{job.metadata.name}-cache"


def service_name(job: FineTuneJob) -> str:
    """Name of the Service that the nodes find each other by."""
    return f"{job.metadata.name}-nodes"


def build_workload_metadata(job: FineTuneJob, decided: Decided, run: RunState) -> Manifest:
    """Metadata of what runs the training."""
    metadata = build_metadata(job, job_name(job))
    metadata["annotations"] = {names.ANNOTATION_PLAN_HASH: decided.plan.training_hash()}
    if job.spec.spot.enabled:
        metadata["annotations"][names.ANNOTATION_MARKET] = run.market
    if job.spec.resources.queue_name is not None:
        metadata["labels"][names.LABEL_QUEUE] = job.spec.resources.queue_name
    return metadata


def is_suspended(job: FineTuneJob, run: RunState) -> bool:
    """Whether the workload is made suspended: as the person wishes, for want of budget, or for Kueue to start it."""
    return job.spec.run_policy.suspend or run.is_overspent or job.spec.resources.queue_name is not None


def build_labels(job: FineTuneJob) -> dict[str, str]:
    """Labels of every child."""
    return {
        names.LABEL_JOB_NAME: job.metadata.name,
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_NAME: "finetune-trainer",
    }


def build_metadata(job: FineTuneJob, name: str, *, owned: bool = True) -> Manifest:
    """Metadata of a child; an owned one goes when the FineTuneJob goes."""
    metadata: Manifest = {"name": name, "namespace": job.metadata.namespace, "labels": build_labels(job)}
    if owned:
        owner = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": job.metadata.name,
            "uid": job.metadata.uid or UNBORN_UID,
            "controller": True,
        }
        metadata["ownerReferences"] = [owner]
    return metadata
