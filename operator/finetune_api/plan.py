"""TrainingPlan: everything the trainer is told. The operator resolves it, the trainer decides nothing twice."""

import hashlib
import json
from typing import Any, Literal

from finetune_api.methods import MethodType
from finetune_api.model_base import ApiModel
from finetune_api.objectives import DpoLoss, ObjectiveType
from finetune_api.strategies import StrategyType

PLAN_VERSION: Literal[1] = 1

Dtype = Literal["float32", "bfloat16", "float16"]
DatasetFormat = Literal[
    "auto", "alpaca", "chatml", "sharegpt", "prompt-completion", "text", "preference", "unpaired-preference", "prompts"
]
Artifact = Literal["adapter", "merged", "gguf"]
Tracker = Literal["tensorboard", "wandb"]
TextMetric = Literal["bleu", "rouge", "exact-match", "token-accuracy", "perplexity"]
GgufType = Literal["f16", "q8_0", "q4_0"]


class ResolvedSource(ApiModel):
    """Where a model or dataset is found from inside the trainer's process."""

    uri: str
    """As the person wrote it; for messages."""
    kind: Literal["hf", "file", "package", "s3"]
    """hf: ``location`` is a hub repository id. file: an absolute path. package: ``distribution/file`` of an installed
    Python package. s3: ``bucket/key`` of a file or folder."""
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


class CleaningPlan(ApiModel):
    dedup: Literal["none", "exact", "minhash"] = "none"
    """exact: rows of the same text; minhash: rows whose word 5-grams overlap by an estimated ``threshold`` too."""
    threshold: float = 0.85
    min_length: int | None = None
    """Rows of fewer tokens are left out."""
    max_length: int | None = None
    """Rows of more tokens are left out, instead of cut."""


class MixturePlan(ApiModel):
    source: ResolvedSource
    split: str = "train"
    format: DatasetFormat
    weight: float
    """Rows of this source for each row of ``dataset.source``, in expectation."""


class DatasetPlan(ApiModel):
    source: ResolvedSource
    split: str = "train"
    """Split of a hub dataset."""
    format: DatasetFormat
    validation_source: ResolvedSource | None = None
    validation_fraction: float | None = None
    """Share of the training rows split off by ``training.seed``; never together with ``validation_source``."""
    max_samples: int | None = None
    cleaning: CleaningPlan = CleaningPlan()
    mixtures: tuple[MixturePlan, ...] = ()
    """Mixed into the training rows; against forgetting, say."""
    streaming: bool = False
    """Rows are encoded as they are needed and never stand on the disk as a whole."""


class LoraPlan(ApiModel):
    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    """Module names, or the single word ``all-linear``."""
    learning_rate_ratio: float | None = None
    """lora-plus: learning rate of the B matrices over that of the A matrices."""
    initial_rank: int | None = None
    """adalora: rank of each module before the budget is cut to ``rank`` on average."""


class Ia3Plan(ApiModel):
    target_modules: tuple[str, ...] | None = None
    """None: PEFT's choice for the architecture (keys, values, down projections)."""


class PromptPlan(ApiModel):
    """Of prefix, prompt, p-tuning and p-tuning-v2."""

    virtual_tokens: int
    encoder_hidden_size: int | None = None
    """Hidden size of the network that makes the virtual tokens (prefix, p-tuning); None: the model's own."""


class BottleneckPlan(ApiModel):
    size: int
    """Width of the bottleneck."""
    placement: Literal["houlsby", "pfeiffer"]
    """houlsby: behind attention and feed-forward; pfeiffer: behind feed-forward only."""
    dropout: float = 0.0


class QuantizationPlan(ApiModel):
    bits: Literal[4, 8]
    type: Literal["nf4", "fp4", "int8"]
    double_quant: bool
    compute_dtype: Dtype


class MethodPlan(ApiModel):
    """What is trained. Of the parts below exactly the one that ``methods.METHODS[type].part`` names is set."""

    type: MethodType
    lora: LoraPlan | None = None
    quantization: QuantizationPlan | None = None
    """Set for qlora; bits of loftq."""
    ia3: Ia3Plan | None = None
    prompt: PromptPlan | None = None
    bottleneck: BottleneckPlan | None = None
    trainable_layers: int | None = None
    """Set for freeze: so many of the last decoder layers are trained, with the final norm."""
    resume_adapter: ResolvedSource | None = None
    """A PEFT adapter of the same kind that the training starts from."""


class GenerationPlan(ApiModel):
    """How grpo, rloo and ppo let the model answer."""

    completions: int = 8
    """Answers a prompt (grpo, rloo: one group)."""
    max_tokens: int = 256
    """Most new tokens of an answer."""
    temperature: float = 1.0
    top_p: float = 1.0


class PpoPlan(ApiModel):
    """PPO (Schulman et al. 2017) as used for language models (Ziegler et al. 2019, Ouyang et al. 2022)."""

    epochs: int = 4
    """Passes over one batch of answers."""
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_advantages: bool = True


class ObjectivePlan(ApiModel):
    type: ObjectiveType
    response_only: bool
    """sft: loss on the responses (completion, assistant turns) only; the prompt is masked."""
    beta: float | None = None
    """Weight of the distance to the reference: dpo, kto, grpo, rloo and ppo (KL coefficient), orpo (lambda)."""
    losses: tuple[DpoLoss, ...] = ("sigmoid",)
    """dpo: TRL's loss types, summed with ``loss_weights``."""
    loss_weights: tuple[float, ...] = ()
    """One for each of ``losses``; empty: 1 each."""
    label_smoothing: float = 0.0
    reference_model: ResolvedSource | None = None
    """Another reference than the start of the training itself."""
    precompute_reference: bool = False
    """dpo, kto: the reference's log-probabilities are computed once before training, then it leaves the memory."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reward_model: ResolvedSource | None = None
    """Sequence classifier of one label that scores answers (grpo, rloo, ppo)."""
    reward_functions: tuple[str, ...] = ()
    """Names of ``finetune_trainer.objective.rewards`` (grpo, rloo, ppo), or ``module:function``; their sum is the reward."""
    generation: GenerationPlan | None = None
    """Set for grpo, rloo and ppo."""
    ppo: PpoPlan | None = None
    """Set for ppo."""


class EarlyStoppingPlan(ApiModel):
    metric: str
    """A key of the evaluation's log, such as ``eval_loss``."""
    patience: int
    """Evaluations in a row without an improvement of ``min_delta``."""
    min_delta: float


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
    """Tokens; longer rows are cut. 0: the 95th percentile of the rows, rounded up to a multiple of 64."""
    packing: Literal["none", "bfd"] = "none"
    """bfd: rows share sequences of ``max_length`` by best-fit decreasing, attention kept within each row."""
    padding_free: bool = False
    """The rows of a batch stand in one sequence without padding, attention kept within each row."""
    gradient_checkpointing: bool
    activation_offload: bool = False
    """Activations wait for the backward pass in host memory."""
    fused_kernels: bool = False
    """Fused Triton kernels of Liger for norms, rotary embeddings and MLP; the loss is tiled by TRL in any case."""
    neftune_alpha: float | None = None
    early_stopping: EarlyStoppingPlan | None = None
    batch_search: bool = False
    """Halves the batch (and doubles the accumulation) until a step fits the memory."""
    data_loader_workers: int = 0
    optimizer: str
    """A transformers ``OptimizerNames`` value."""
    max_grad_norm: float
    seed: int
    precision: Literal["bf16", "fp16", "fp32", "tf32"]
    """Autocast precision of the forward pass; fp32: no autocast."""
    logging_steps: int


class HarnessPlan(ApiModel):
    """Tasks of EleutherAI's lm-evaluation-harness."""

    tasks: tuple[str, ...]
    """Names of its registry, or file:///path.yaml of a task's definition."""
    limit: int | None = None
    """Documents a task."""
    fewshot: int | None = None
    """None: as the task says."""


class GatePlan(ApiModel):
    metric: str
    """A key of the result's ``evaluation``."""
    op: Literal["<", "<=", ">", ">="]
    value: float | None = None
    versus_base: float | None = None
    """Exactly one of both is set. The bound is the base model's figure plus this one."""


class EvaluationPlan(ApiModel):
    every_steps: int | None = None
    """None: at each epoch's end (with validation data). Always before the first and after the last step too."""
    samples: tuple[str, ...] = ()
    """Prompts that the model answers greedily before and after training; the answers stand in result.json."""
    sample_tokens: int = 96
    """Most new tokens of an answer."""
    metrics: tuple[TextMetric, ...] = ()
    """bleu, rouge, exact-match: on greedy answers to the validation rows, before and after training."""
    metric_rows: int = 64
    """Validation rows that are answered for the metrics."""
    harness: HarnessPlan | None = None
    gates: tuple[GatePlan, ...] = ()
    """All have to hold after training, or the run fails, its artifacts kept."""


class ElasticPlan(ApiModel):
    """Nodes that may be missing."""

    min_nodes: int
    """The training goes on with as few."""
    max_restarts: int
    """Failures of a node's processes after which they are started again in place."""


class ParallelismPlan(ApiModel):
    strategy: StrategyType
    device: Literal["cpu", "cuda"]
    nodes: int = 1
    """Pods or machines; the most there can be where ``elastic`` is set."""
    elastic: ElasticPlan | None = None
    processes_per_node: int
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's configuration; set for zero1, zero2 and zero3."""
    fsdp: dict[str, Any] | None = None
    """``fsdp_config`` of transformers; set for fsdp."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


class PreflightPlan(ApiModel):
    """What a pod was promised, to be looked at before the training."""

    gpus: int
    shared_memory_bytes: int
    """Size of /dev/shm."""
    rdma: bool
    free_disk_bytes: int | None = None
    """Least free space where output and checkpoints are written."""
    bus_bandwidth: float | None = None
    """Least bytes a second of an all-reduce over all ranks, as NCCL's tests count them."""


class CheckpointPlan(ApiModel):
    directory: str
    """Of this run's checkpoints, ``<directory>/checkpoint-<step>``: a folder that every node sees, or s3://bucket/prefix."""
    staging: str | None = None
    """Folder on each node's disk that checkpoints are written to first, to be brought to ``directory`` from there. Set for
    S3 and where ``asynchronous``; None: they are written to ``directory`` at once."""
    asynchronous: bool = False
    """The training goes on while a checkpoint is brought to ``directory``."""
    every_steps: int | None = None
    every_minutes: float | None = None
    """At most one of both is set; neither: at each epoch's end."""
    keep: int
    keep_best: bool = False
    """The checkpoint of the lowest validation loss is kept too, and its weights are those exported."""
    resume: Literal["auto", "never"]
    origin: str | None = None
    """A checkpoint of another run, which this one goes on from while it has none of its own: a folder, or
    s3://bucket/prefix/checkpoint-<step>."""

    @property
    def is_remote(self) -> bool:
        """Whether ``directory`` is no folder."""
        return self.directory.startswith("s3://")

    @property
    def folder(self) -> str:
        """Where on its own disks a node writes checkpoints, and what is kept beside them."""
        return self.staging or self.directory


class HubPlan(ApiModel):
    repo: str
    """organisation/name"""
    private: bool


class OutputPlan(ApiModel):
    directory: str
    """Artifacts go to ``<directory>/adapter``, ``merged`` and ``gguf``, the summary to ``<directory>/result.json``."""
    destination: str | None = None
    """s3://bucket/prefix to which all of that is brought. ``directory`` may then end with the pod."""
    artifacts: tuple[Artifact, ...]
    """``merged``: the whole model in safetensors; for full fine-tuning the model itself."""
    verify: bool
    """Reload each artifact and compare its logits with the trained model's."""
    gguf_type: GgufType = "f16"
    hub: HubPlan | None = None
    """Where the artifacts are uploaded to; the token is in the environment."""


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
    preflight: PreflightPlan | None = None
    cache_directory: str
    """For downloads and converted models; may outlive the run."""

    def to_json(self) -> str:
        """Stable text: the same plan gives the same bytes."""
        return (
            json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        )

    def on_nodes(self, nodes: int) -> "TrainingPlan":
        """The same training on another number of nodes: as many rows a step, dealt out among them.

        Raises: ValueError when these rows can't be dealt out evenly.
        """
        parallelism, accumulation = self.parallelism, self.training.gradient_accumulation
        batches = accumulation * parallelism.nodes
        if batches % nodes:
            raise ValueError(
                f"{batches} batches a step (gradientAccumulation {accumulation} x {parallelism.nodes} nodes) can't be "
                f"dealt out evenly to {nodes}"
            )
        training = self.training.model_copy(update={"gradient_accumulation": batches // nodes})
        return self.model_copy(
            update={"training": training, "parallelism": parallelism.model_copy(update={"nodes": nodes})}
        )

    def training_hash(self) -> str:
        """Hash of what decides the trained weights. A checkpoint of another hash can't be resumed exactly.

        How the rows of a step are dealt out among processes and batches is not in it, only how many a step has.
        """
        decisive = self.model_dump(
            mode="json",
            by_alias=True,
            include={
                "model": True,
                "dataset": True,
                "method": True,
                "objective": True,
                "training": True,
                "parallelism": {"strategy", "device", "deepspeed", "fsdp"},
            },
        )
        decisive["training"]["gradientAccumulation"] *= self.parallelism.world_size
        del decisive["training"]["dataLoaderWorkers"]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
