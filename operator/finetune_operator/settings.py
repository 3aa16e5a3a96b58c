"""What the platform team decides for every job: one validated file, read once at the start."""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from finetune_api.kubernetes import (
    DnsLabel,
    DnsSubdomain,
    Duration,
    LabelValue,
    LocalObjectReference,
    PodSecurityContext,
    Quantity,
    SeccompProfile,
)
from finetune_api.model_base import ApiModel


class ResourceDefaults(ApiModel):
    """What a pod gets when the job doesn't say."""

    cpu: Quantity
    """CPU request."""
    memory: Quantity
    """Memory request and limit."""
    shared_memory: Quantity
    """Size of /dev/shm."""


class OutputDefaults(ApiModel):
    """The claim made for a job's output."""

    size: Quantity = "20Gi"
    """Size of the claim."""
    storage_class: DnsSubdomain | None = None
    """Storage class; the cluster's default when absent."""


class GpuPrice(ApiModel):
    """Of one GPU for one hour, with its share of the node."""

    on_demand: Annotated[float, Field(ge=0)]
    """Price."""
    spot: Annotated[float, Field(ge=0)] | None = None
    """Price on the spot market; the other one when absent."""


class Settings(ApiModel):
    """Settings of one operator installation."""

    namespaces: list[DnsLabel] = []
    """Namespaces watched; empty: all."""
    trainer_image: str = "finetune-trainer:0.1.0"
    """Image of the trainer's pods."""
    image_pull_secrets: list[LocalObjectReference] = []
    """Secrets for the image registry, in the job's namespace."""
    gpu_defaults: ResourceDefaults = ResourceDefaults(cpu="8", memory="64Gi", shared_memory="32Gi")
    """For each GPU of a job; shared memory for all together."""
    cpu_defaults: ResourceDefaults = ResourceDefaults(cpu="2", memory="8Gi", shared_memory="1Gi")
    """For jobs without a GPU."""
    output: OutputDefaults = OutputDefaults()
    """The claim made for a job's output."""
    security_context: PodSecurityContext = PodSecurityContext(
        run_as_non_root=True,
        run_as_user=1000,
        run_as_group=1000,
        fs_group=1000,
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=SeccompProfile(type="RuntimeDefault"),
    )
    """Security context of the trainer's pods; conforms to Pod Security 'restricted'."""
    termination_grace_period: Duration = "120s"
    """Time the trainer has for its last checkpoint."""
    spot_provider: Literal["karpenter", "gke", "eks", "aks", "generic"] = "generic"
    """Whose labels and taints the cluster's spot nodes have, for jobs that don't say."""
    gpu_prices: dict[LabelValue, GpuPrice] = {}
    """By resources.gpu.product, in any one currency; of jobs that name no product: default. For status.cost and budget.maxCost."""
    progress_interval: Duration = "30s"
    """How often a running job's progress is read and, if it changed, written to its status."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Jobs reconciled at the same time."""
    resync_seconds: Annotated[int, Field(ge=10)] = 600
    """Every job is looked at again at least so often."""
    watch_stale_seconds: Annotated[int, Field(ge=5)] = 60
    """A change that the watch hasn't delivered for so long turns /healthz red."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of /healthz, /readyz and /metrics."""
    lease_namespace: DnsLabel = "finetune-system"
    """Namespace of the leader's Lease."""
    lease_name: DnsSubdomain = "finetune-operator"
    """Name of the leader's Lease."""
    log_format: Literal["json", "text"] = "json"
    """Format of the operator's log."""


def load_settings(path: Path | None) -> Settings:
    """Settings of a YAML file; the defaults without one. Raises pydantic.ValidationError, OSError, yaml.YAMLError."""
    return Settings() if path is None else Settings.model_validate(yaml.safe_load(path.read_text()) or {})
