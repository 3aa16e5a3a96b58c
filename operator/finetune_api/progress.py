"""What the trainer tells of itself: /progress while it runs, the termination message and result.json at its end."""

from typing import Literal

from finetune_api.model_base import ApiModel
from finetune_api.plan import Artifact

Stage = Literal["preparing", "training", "checkpointing", "evaluating", "exporting", "done"]


class Progress(ApiModel):
    """Body of ``GET /progress`` on the metrics port of rank 0. Numbers that aren't known yet are null, never NaN."""

    run_id: str
    stage: Stage
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    checkpoint_step: int | None = None
    """Step of the newest complete checkpoint."""
    restarted_from: int | None = None
    """Step of the checkpoint that this process resumed from."""
    lost_steps: int = 0
    """Steps that were done and had to be done again, of the whole run."""
    nodes: int | None = None
    """Nodes that train now."""


class ArtifactRecord(ApiModel):
    """One exported artifact: a folder."""

    type: Artifact
    path: str
    bytes: int
    sha256: str
    """Over the folder's files: sha256 of the sorted lines ``<sha256>  <relative path>``."""
    difference: float | None = None
    """How far the reloaded artifact is from the trained model (gguf: from the merged one, before its weights were rounded):
    the largest difference of two logits as a share of the largest logit (at least 1). None: not compared."""


class Termination(ApiModel):
    """JSON in the container's termination message (at most 4096 bytes), also when all went well."""

    reason: str
    """A reason of ``exit_codes.TABLE``."""
    message: str
    """What happened and what to change, one or two sentences."""
    step: int = 0
    total_steps: int = 0
    checkpoint_step: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    lost_steps: int = 0
    artifacts: tuple[ArtifactRecord, ...] = ()


class Sample(ApiModel):
    """One prompt and what the model answered."""

    prompt: str
    before: str
    """The base model's answer, greedy."""
    after: str
    """The trained model's answer, greedy."""


class GateOutcome(ApiModel):
    """One gate and whether the trained model passed it."""

    metric: str
    op: Literal["<", "<=", ">", ">="]
    bound: float | None
    """The figure that had to be met; None when it is the base model's and that is no number."""
    value: float | None
    """The trained model's figure; None when it is no number, which no gate lets pass."""
    held: bool


class Result(ApiModel):
    """``<output>/result.json``: what came of the run."""

    run_id: str
    job: str
    steps: int
    epochs: float
    loss: float | None
    """Mean training loss over the last logging window."""
    eval_loss_before: float | None
    """Validation loss before the first step."""
    eval_loss: float | None
    """Validation loss after the last step."""
    tokens_seen: int
    tokens_per_second: float
    """Non-padding input tokens per second of training time."""
    train_seconds: float
    """Wall time spent in training, all processes of the run added, downtime between them not."""
    peak_host_memory_bytes: int
    peak_gpu_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    resumes: int
    lost_steps: int = 0
    """Optimiser steps that were done and had to be done again."""
    artifacts: tuple[ArtifactRecord, ...]
    samples: tuple[Sample, ...] = ()
    evaluation_before: dict[str, float] = {}
    """Figures of the model before training, by metric."""
    evaluation: dict[str, float] = {}
    """Figures of the trained model: ``loss``, ``perplexity``, ``token-accuracy``, ``bleu``, ``rouge1``, ``rouge2``,
    ``rougeL``, ``exact-match``, ``harness/<task>/<metric>``, so far as the plan asks for them."""
    gates: tuple[GateOutcome, ...] = ()
    best_step: int | None = None
    """Step whose weights were evaluated and exported, when it isn't the last one."""
    pushed_to: str | None = None
    """Address of the repository that the artifacts were uploaded to."""
    delivered_to: str | None = None
    """s3://bucket/prefix that the artifacts were brought to."""
    versions: dict[str, str]
    """Versions of torch, transformers, trl, peft and the trainer."""
