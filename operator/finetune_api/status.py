"""FineTuneJob's status as the CRD describes it. Written by the operator alone, by one patch a pass."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.model_base import ApiModel

Time = Annotated[str, StringConstraints(max_length=64), Field(json_schema_extra={"format": "date-time"})]


class ConditionStatus(ApiModel):
    """One condition, as in metav1.Condition."""

    type: str
    """Type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: int
    """metadata.generation that it was decided on."""
    last_transition_time: Time
    """When status changed last."""
    reason: str
    """One word for machines."""
    message: str
    """A sentence for people."""


class PlanStatus(ApiModel):
    """What the operator resolved."""

    hash: str
    """Hash of what decides the trained weights."""
    method: str
    """Method of training."""
    objective: str
    """Objective of training."""
    gpus: int
    """GPUs of the job, all nodes together."""
    nodes: int | None = None
    """Pods that train together."""
    strategy: str
    """How the processes share the work."""


class WorkloadStatus(ApiModel):
    """The object that runs the training."""

    kind: str
    """Kind of the object."""
    name: str
    """Name of the object."""
    uid: str
    """Its uid: a workload that was deleted and made again has another."""
    restarts_before: int
    """Restarts of the workloads before this one; what is left of backoffLimit goes on from here."""
    preemptions_before: int
    """Preemptions of the workloads before this one."""
    saved_step_before: int | None = None
    """Step of the newest checkpoint of the workloads before this one."""
    start_time: Time | None = None
    """When its controller began, the last time; only of jobs with runPolicy.activeDeadline."""
    active_seconds_before: int | None = None
    """How long the workloads before this one were active; only of jobs with runPolicy.activeDeadline."""
    counted: list[str] | None = None
    """Ends of pods that are in the counts already, as pod/restart, as long as the pod is there."""
    peer_losses: int | None = None
    """Times in a row that the nodes lost each other, with nothing to explain it and no new checkpoint."""
    peer_losses_since: str | None = None
    """What the row began with; once that changes, it begins anew."""


class ProgressStatus(ApiModel):
    """How far the training is, as the trainer tells it."""

    step: int | None = None
    """Optimiser steps done."""
    total_steps: int | None = None
    """Optimiser steps of the whole run."""
    percent: int | None = None
    """Share of the steps done, 0 to 100."""
    epoch: float | None = None
    """Passes over the data done."""
    loss: float | None = None
    """Training loss."""
    eval_loss: float | None = None
    """Validation loss."""
    learning_rate: float | None = None
    """Learning rate."""
    tokens_per_second: int | None = None
    """Input tokens per second, all devices."""
    eta_seconds: int | None = None
    """Seconds until the last step."""
    nodes: int | None = None
    """Nodes that train now, of a job with parallelism.elastic."""
    updated_at: Time | None = None
    """When the trainer was asked."""


class CheckpointStatus(ApiModel):
    """A complete checkpoint."""

    step: int
    """Optimiser steps done."""
    uri: str
    """Where it is."""


class CheckpointsStatus(ApiModel):
    """Complete checkpoints."""

    latest: CheckpointStatus | None = None
    """The newest."""


class ArtifactStatus(ApiModel):
    """What came of the run."""

    type: str
    """adapter or merged."""
    uri: str
    """Where it is."""
    bytes: int
    """Size of its files."""
    sha256: str
    """Over its files: sha256 of the sorted lines 'sha256  path'."""


class Status(ApiModel):
    """What the operator observed and decided."""

    phase: str | None = None
    """One word for people."""
    message: str | None = None
    """What is going on, or what went wrong and the mend."""
    observed_generation: int | None = None
    """metadata.generation that this status speaks of."""
    conditions: list[ConditionStatus] | None = None
    """Validated, Ready, Progressing, Complete, Failed, Suspended."""
    start_time: Time | None = None
    """When the workload was first created."""
    completion_time: Time | None = None
    """When the job ended."""
    plan: PlanStatus | None = None
    """What the operator resolved."""
    workload: WorkloadStatus | None = None
    """The object that runs the training."""
    progress: ProgressStatus | None = None
    """How far the training is."""
    checkpoints: CheckpointsStatus | None = None
    """Complete checkpoints."""
    restarts: int | None = None
    """Failures that were retried and count towards runPolicy.backoffLimit, over every workload of this job."""
    preemptions: int | None = None
    """Ends after a complete checkpoint, or by a disruption; not counted as restarts."""
    lost_steps: int | None = None
    """Optimiser steps that were done and had to be done again, all interruptions together."""
    market: Literal["spot", "on-demand"] | None = None
    """Where the pods run now, for jobs with spot.enabled."""
    market_since: Time | None = None
    """When that was decided."""
    market_preemptions: int | None = None
    """Preemptions at that time."""
    gpu_hours: float | None = None
    """GPUs times hours that the pods held them, over every workload of this job."""
    cost: float | None = None
    """Of these, by the platform's prices; absent without a price."""
    spent_until: Time | None = None
    """Up to when both are counted."""
    node: str | None = None
    """Node of the newest pod."""
    artifacts: list[ArtifactStatus] | None = None
    """What came of the run."""
