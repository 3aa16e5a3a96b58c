"""TrainingPlan: everything the trainer is told. The operator resolves it, the trainer decides nothing twice."""

import hashlib
import json
from typing import Literal

from finetune_api.model_base import ApiModel

PLAN_VERSION: Literal[1] = 1

Dtype = Literal["float32", "bfloat16", "float16"]
DatasetFormat = Literal["auto", "alpaca", "chatml", "sharegpt", "prompt-completion", "text"]
MethodType = Literal["full", "lora", "qlora"]
Artifact = Literal["adapter", "merged"]
Tracker = Literal["tensorboard", "wandb"]


class ResolvedSource(ApiModel):
    """Where a model or dataset is found from inside the trainer's process."""

    uri: str
    """As the person wrote it; for messages."""
    kind: Literal["hf", "file", "package"]
    """hf: ``location`` is a hub repository id. file: an absolute path. package: ``distribution/file`` of an installed
    Python package."""
    location: str


class JobIdentity(ApiModel):
    """Which FineTuneJob this is; labels of the metrics."""

    name: str
    namespace: str
    run_id: str
    """Identity of the run: checkpoints of another run are never resumed. The FineTuneJob's uid on a cluster."""


class ModelPlan(ApiModel):
    source: ResolvedSource
    revision: str | None = None
    dtype: Dtype
    """Dtype the base weights are loaded in."""
    attention: Literal["sdpa", "flash_attention_2", "eager"]
    chat_template: str | None = None
    """Jinja template that replaces the tokenizer's own."""
    trust_remote_code: bool = False


class DatasetPlan(ApiModel):
    source: ResolvedSource
    split: str = "train"
    """Split of a hub dataset."""
    format: DatasetFormat
    validation_source: ResolvedSource | None = None
    validation_fraction: float | None = None
    """Share of the training rows split off by ``training.seed``; never together with ``validation_source``."""
    max_samples: int | None = None


class LoraPlan(ApiModel):
    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    """Module names, or the single word ``all-linear``."""


class QuantizationPlan(ApiModel):
    bits: Literal[4, 8]
    type: Literal["nf4", "fp4", "int8"]
    double_quant: bool
    compute_dtype: Dtype


class MethodPlan(ApiModel):
    type: MethodType
    lora: LoraPlan | None = None
    """Set for lora and qlora."""
    quantization: QuantizationPlan | None = None
    """Set for qlora."""


class ObjectivePlan(ApiModel):
    type: Literal["sft"]
    response_only: bool
    """Loss on the responses (completion, assistant turns) only; the prompt is masked."""


class HyperparameterPlan(ApiModel):
    epochs: float | None = None
    max_steps: int | None = None
    """Exactly one of ``epochs`` and ``max_steps`` is set."""
    learning_rate: float
    scheduler: str
    """A transformers ``SchedulerType`` value."""
    warmup_ratio: float
    weight_decay: float
    per_device_batch_size: int
    gradient_accumulation: int
    max_length: int
    """Tokens; longer rows are cut."""
    gradient_checkpointing: bool
    optimizer: str
    """A transformers ``OptimizerNames`` value."""
    max_grad_norm: float
    seed: int
    precision: Literal["bf16", "fp16", "fp32", "tf32"]
    """Autocast precision of the forward pass; fp32: no autocast."""
    logging_steps: int


class EvaluationPlan(ApiModel):
    every_steps: int | None = None
    """None: at each epoch's end (with validation data). Always before the first and after the last step too."""
    samples: tuple[str, ...] = ()
    """Prompts that the model answers greedily before and after training; the answers stand in result.json."""
    sample_tokens: int = 96
    """Most new tokens of an answer."""


class ParallelismPlan(ApiModel):
    strategy: Literal["single", "ddp"]
    device: Literal["cpu", "cuda"]
    nodes: int = 1
    processes_per_node: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


class CheckpointPlan(ApiModel):
    directory: str
    """Folder of this run's checkpoints: ``<directory>/checkpoint-<step>``."""
    every_steps: int | None = None
    """None: at each epoch's end."""
    keep: int
    resume: Literal["auto", "never"]


class OutputPlan(ApiModel):
    directory: str
    """Artifacts go to ``<directory>/adapter`` and ``<directory>/merged``, the summary to ``<directory>/result.json``."""
    artifacts: tuple[Artifact, ...]
    """``merged``: the whole model in safetensors; for full fine-tuning the model itself."""
    verify: bool
    """Reload each artifact and compare its logits with the trained model's."""


class ObservabilityPlan(ApiModel):
    metrics_port: int
    """0: any free port, logged at the start."""
    trackers: tuple[Tracker, ...] = ()


class TrainingPlan(ApiModel):
    """The whole of what one training run needs to know; JSON in ``/etc/finetune/plan.json``. Holds no secret."""

    version: Literal[1] = PLAN_VERSION
    job: JobIdentity
    model: ModelPlan
    dataset: DatasetPlan
    method: MethodPlan
    objective: ObjectivePlan
    training: HyperparameterPlan
    evaluation: EvaluationPlan = EvaluationPlan()
    parallelism: ParallelismPlan
    checkpoint: CheckpointPlan
    output: OutputPlan
    observability: ObservabilityPlan
    cache_directory: str
    """For downloads and converted models; may outlive the run."""

    def to_json(self) -> str:
        """Stable text: the same plan gives the same bytes."""
        return (
            json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        )

    def training_hash(self) -> str:
        """Hash of what decides the trained weights. A checkpoint of another hash can't be resumed exactly."""
        decisive = self.model_dump(
            mode="json", by_alias=True, include={"model", "dataset", "method", "objective", "training", "parallelism"}
        )
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
