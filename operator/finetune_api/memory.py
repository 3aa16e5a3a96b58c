"""The memory model: bytes that each device needs for a plan, part by part, and what would save some of them. Pure.

Sizes of architectures are those of the models' public configurations; everything else is arithmetic on them.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from finetune_api.methods import METHODS
from finetune_api.objectives import OBJECTIVES, ObjectiveType
from finetune_api.plan import LoraPlan, MethodPlan, QuantizationPlan, TrainingPlan
from finetune_api.strategies import STRATEGIES, StrategyType

GIB = 2**30

OVERHEAD_BYTES = round(1.5 * GIB)
"""CUDA context, kernels, communication buffers and what the allocator can't use."""

ASSUMED_LENGTH = 2048
"""Tokens of a row where ``training.maxLength`` is left to the data."""

OFFLOADING_OBJECTIVES: tuple[ObjectiveType, ...] = ("sft", "pretrain", "dpo", "kto", "reward")
"""Objectives whose TRL trainers can put activations into host memory."""

_SEARCHING_STRATEGIES: tuple[StrategyType, ...] = ("single", "ddp")

_TILED_LOSS: tuple[ObjectiveType, ...] = ("sft", "pretrain", "dpo", "kto", "grpo", "rloo")
"""Objectives whose TRL trainers project to the vocabulary in tiles, never all tokens at once."""
_TILE = (4096, 32768)
"""Tokens and vocabulary of a tile."""

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

OPTIMIZER_BYTES = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "paged_adamw_32bit": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "adafactor": 0,
    "sgd": 0,
}
"""Bytes of state for each trained parameter: two float32 moments of AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101),
two 8-bit ones (Dettmers et al. 2021, arXiv:2110.02861); Adafactor's row and column sums (Shazeer & Stern 2018,
arXiv:1804.04235) and plain SGD round to nothing. Others are taken for AdamW."""


class ModelShape(NamedTuple):
    """What decides the memory of a decoder with grouped-query attention and a gated feed-forward."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    """One matrix is embedding and head."""
    qkv_bias: bool = False
    head_norms: bool = False
    """Norms on the queries and keys of a head."""
    norms: int = 2
    """Norms of a layer."""
    fused: bool = False
    """Queries, keys and values are one module, gate and up projection another."""
    stated: int | None = None
    """Parameters as the model's name says, where the rest of the shape is only that of its nearest kin."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear modules."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            return {
                "qkv_proj": (self.hidden, query + 2 * key),
                "o_proj": (query, self.hidden),
                "gate_up_proj": (self.hidden, 2 * self.intermediate),
                "down_proj": (self.intermediate, self.hidden),
            }
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def few_targets(self) -> tuple[str, ...] | None:
        """The fewest modules whose adapters still learn well (queries and values, Hu et al. 2021); None: the modules'
        names are unknown."""
        if self.stated is not None:
            return None
        return ("qkv_proj",) if self.fused else ("q_proj", "v_proj")

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' linear modules: what is quantised."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        norms = self.norms * self.hidden + (2 * self.head_dim if self.head_norms else 0)
        return self.linear_parameters // self.layers + biases + norms

    @property
    def parameters(self) -> int:
        """All parameters: layers, embedding, head if it is one of its own, and the last norm."""
        if self.stated is not None:
            return self.stated
        ends = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + ends + self.hidden


_LLAMA_2 = {
    "7b": ModelShape(32, 4096, 11008, 32, 32, 128, 32000),
    "13b": ModelShape(40, 5120, 13824, 40, 40, 128, 32000),
    "34b": ModelShape(48, 8192, 22016, 64, 8, 128, 32000),
    "70b": ModelShape(80, 8192, 28672, 64, 8, 128, 32000),
}

SHAPES: dict[str, dict[str, ModelShape]] = {
    "llama-2": _LLAMA_2,
    "codellama": _LLAMA_2,
    "llama-3": {
        "1b": ModelShape(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
        "3b": ModelShape(28, 3072, 8192, 24, 8, 128, 128256, tied=True),
        "8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256),
        "70b": ModelShape(80, 8192, 28672, 64, 8, 128, 128256),
        "405b": ModelShape(126, 16384, 53248, 128, 8, 128, 128256),
    },
    "qwen2.5": {
        "0.5b": ModelShape(24, 896, 4864, 14, 2, 64, 151936, tied=True, qkv_bias=True),
        "1.5b": ModelShape(28, 1536, 8960, 12, 2, 128, 151936, tied=True, qkv_bias=True),
        "3b": ModelShape(36, 2048, 11008, 16, 2, 128, 151936, tied=True, qkv_bias=True),
        "7b": ModelShape(28, 3584, 18944, 28, 4, 128, 152064, qkv_bias=True),
        "14b": ModelShape(48, 5120, 13824, 40, 8, 128, 152064, qkv_bias=True),
        "32b": ModelShape(64, 5120, 27648, 40, 8, 128, 152064, qkv_bias=True),
        "72b": ModelShape(80, 8192, 29568, 64, 8, 128, 152064, qkv_bias=True),
    },
    "qwen3": {
        "0.6b": ModelShape(28, 1024, 3072, 16, 8, 128, 151936, tied=True, head_norms=True),
        "1.7b": ModelShape(28, 2048, 6144, 16, 8, 128, 151936, tied=True, head_norms=True),
        "4b": ModelShape(36, 2560, 9728, 32, 8, 128, 151936, tied=True, head_norms=True),
        "8b": ModelShape(36, 4096, 12288, 32, 8, 128, 151936, head_norms=True),
        "14b": ModelShape(40, 5120, 17408, 40, 8, 128, 151936, head_norms=True),
        "32b": ModelShape(64, 5120, 25600, 64, 8, 128, 151936, head_norms=True),
    },
    "mistral": {
        "7b": ModelShape(32, 4096, 14336, 32, 8, 128, 32768),
        "nemo": ModelShape(40, 5120, 14336, 32, 8, 128, 131072),
        "24b": ModelShape(40, 5120, 32768, 32, 8, 128, 131072),
    },
    "gemma-2": {
        "2b": ModelShape(26, 2304, 9216, 8, 4, 256, 256000, tied=True, norms=4),
        "9b": ModelShape(42, 3584, 14336, 16, 8, 256, 256000, tied=True, norms=4),
        "27b": ModelShape(46, 4608, 36864, 32, 16, 128, 256000, tied=True, norms=4),
    },
    "gemma-3": {"1b": ModelShape(26, 1152, 6912, 4, 1, 256, 262144, tied=True, head_norms=True, norms=4)},
    "smollm2": {
        "135m": ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
        "360m": ModelShape(32, 960, 2560, 15, 5, 64, 49152, tied=True),
        "1.7b": ModelShape(24, 2048, 8192, 32, 32, 64, 49152, tied=True),
    },
    "tinyllama": {"1.1b": ModelShape(22, 2048, 5632, 32, 4, 64, 32000)},
    "phi-3": {"mini": ModelShape(32, 3072, 8192, 32, 32, 96, 32064, fused=True)},
    "phi-4": {
        "mini": ModelShape(32, 3072, 8192, 24, 8, 128, 200064, tied=True, fused=True),
        "": ModelShape(40, 5120, 17920, 40, 10, 128, 100352, fused=True),
    },
}
"""Public architectures by family and size, as both stand in the models' names."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([bm])")


def find_shape(name: str) -> ModelShape | None:
    """The shape of the model that a source or hub id names: from ``SHAPES``; else of its nearest kin, by the size in
    the name ("8B"); None when the name says neither."""
    text = name.lower()
    words = re.split(r"[-_/:]", text)
    for family in sorted(SHAPES, key=len, reverse=True):
        if family in text:
            for size, shape in SHAPES[family].items():
                if not size or size in words:
                    return shape
            break
    sizes = [match for word in words if (match := _SIZE.fullmatch(word))]
    if not sizes:
        return None
    parameters = round(float(sizes[0][1]) * {"b": 1e9, "m": 1e6}[sizes[0][2]])
    known = (shape for family in SHAPES.values() for shape in family.values())
    kin = min(known, key=lambda shape: abs(math.log(shape.parameters / parameters)))
    return kin._replace(stated=parameters)


def parse_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape in a model's ``config.json``; None for an architecture whose fields have other names."""
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        kind = config.get("model_type", "")
        return ModelShape(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", True),
            qkv_bias=kind == "qwen2",
            head_norms=kind.startswith(("qwen3", "gemma3")),
            norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
            fused=kind == "phi3",
        )
    except KeyError:
        return None


def count_trainable(shape: ModelShape, method: MethodPlan) -> int:
    """Parameters that the method trains.

    LoRA: rank x (inputs + outputs) a module (Hu et al. 2021); DoRA adds a magnitude for each output; IA3 a scale for
    each key, value and feed-forward input; virtual tokens and their encoders by PEFT's modules.
    """
    if method.lora is not None:
        modules = _list_targets(shape, method.lora)
        rank = method.lora.initial_rank or method.lora.rank
        each = sum(rank * (inputs + outputs) for inputs, outputs in modules)
        extra = {
            "dora": sum(outputs for _, outputs in modules),
            "adalora": len(modules) * rank,
        }.get(method.type, 0)
        return shape.layers * (each + extra)
    if method.prompt is not None:
        return _count_virtual(shape, method)
    if method.bottleneck is not None:
        sublayers = 2 if method.bottleneck.placement == "houlsby" else 1
        size = method.bottleneck.size
        return shape.layers * sublayers * (2 * shape.hidden * size + size + shape.hidden)
    if method.type == "ia3":
        return shape.layers * (2 * shape.kv_heads * shape.head_dim + shape.intermediate)
    if method.trainable_layers is not None:
        return min(method.trainable_layers, shape.layers) * shape.layer_parameters + shape.hidden
    return shape.parameters


def _list_targets(shape: ModelShape, lora: LoraPlan) -> list[tuple[int, int]]:
    everything = lora.target_modules == ("all-linear",)
    return [size for name, size in shape.linears.items() if everything or name in lora.target_modules]


def _count_virtual(shape: ModelShape, method: MethodPlan) -> int:
    assert method.prompt is not None
    tokens, hidden = method.prompt.virtual_tokens, shape.hidden
    width = method.prompt.encoder_hidden_size or hidden
    keys = 2 * shape.layers * shape.kv_heads * shape.head_dim
    token = shape.kv_heads * shape.head_dim
    match method.type:
        case "prompt":
            return tokens * hidden
        case "p-tuning":
            return tokens * hidden + (hidden + 1) * width + (width + 1) * width + (width + 1) * hidden
        case "prefix":
            return tokens * token + (token + 1) * width + (width + 1) * keys
        case _:
            return tokens * keys


class Estimate(NamedTuple):
    """Peak bytes on each device."""

    weights: int
    copies: int
    """16-bit copies of trained float32 weights."""
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reference: int
    """Of another model that stays in memory: reference or reward model."""
    overhead: int

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def gib(self) -> float:
        """The total in GiB."""
        return self.total / GIB


def estimate(shape: ModelShape, plan: TrainingPlan) -> Estimate:
    """What a step of the plan needs on each device.

    - weights: parameters x bytes of their dtype; quantised linear modules 4 or 8 bits a weight and, for each 64, one
      float32 scale (double quantisation: 0.127 bit a weight; Dettmers et al. 2023, arXiv:2305.14314); adapters in
      float32.
    - copies: what autocast keeps through a step of the trained float32 weights that it has cast.
    - gradients: trained parameters x bytes of their dtype.
    - optimizer: ``OPTIMIZER_BYTES``; DeepSpeed keeps 16-bit weights and float32 masters here (Rajbhandari et al. 2019,
      arXiv:1910.02054: 2 + 2 + 12 bytes).
    - activations: Korthikanti et al. 2022, arXiv:2205.05198, see ``_count_activations``.
    - logits: tokens x vocabulary in 16 and 32 bits and their gradient; one tile where the loss is tiled.

    What the strategy shares out counts by the share (ZeRO); parameters that are gathered for use count twice the
    largest layer beside it.
    """
    training, method, strategy = plan.training, plan.method, STRATEGIES[plan.parallelism.strategy]
    world = plan.parallelism.world_size
    shares = {part: world if part in strategy.shards else 1 for part in ("optimizer", "gradients", "parameters")}
    trainable = count_trainable(shape, method)
    adapter = METHODS[method.type].adapter
    half = training.precision in ("bf16", "fp16")
    mastered = strategy.engine == "deepspeed" and half
    stored = 2 if mastered else _DTYPE_BYTES[plan.model.dtype]
    trained = 2 if mastered else 4 if adapter else stored
    states = OPTIMIZER_BYTES.get(training.optimizer, 8) * (1 if trained == 4 or mastered else 0.5)
    frozen = shape.parameters - (0 if adapter else trainable)
    weights = _count_weights(shape, frozen, method.quantization, stored) + trainable * trained
    copies = trainable * 2 if half and trained == 4 and not adapter else 0
    gathered = 2 * shape.layer_parameters * stored if shares["parameters"] > 1 else 0
    tokens = training.per_device_batch_size * _count_length(plan) * (2 if _pairs(plan) else 1)
    return Estimate(
        weights=weights // shares["parameters"] + gathered,
        copies=copies // shares["parameters"],
        gradients=trainable * trained // shares["gradients"],
        optimizer=0
        if _offloads_optimizer(plan)
        else round(trainable * (states + (4 if mastered else 0)) / shares["optimizer"]),
        activations=_count_activations(shape, plan, tokens),
        logits=_count_logits(shape, plan, tokens),
        reference=_count_reference(shape, plan, stored),
        overhead=OVERHEAD_BYTES,
    )


def _count_weights(shape: ModelShape, frozen: int, quantization: QuantizationPlan | None, stored: int) -> int:
    if quantization is None:
        return frozen * stored
    quantised = min(shape.linear_parameters, frozen)
    bits = 8.0 if quantization.bits == 8 else 4 + (0.127 if quantization.double_quant else 0.5)
    return round(quantised * bits / 8) + (frozen - quantised) * stored


def _count_length(plan: TrainingPlan) -> int:
    answer = plan.objective.generation.max_tokens if plan.objective.generation is not None else 0
    return (plan.training.max_length or ASSUMED_LENGTH) + answer


def _pairs(plan: TrainingPlan) -> bool:
    return OBJECTIVES[plan.objective.type].rows == "preference"


def _count_activations(shape: ModelShape, plan: TrainingPlan, tokens: int) -> int:
    """Bytes kept for the backward pass.

    Korthikanti et al. count s b h (34 + 5 a s / h) bytes a layer: what the backward pass of each operation reads, in 16
    bits. Counted the same way for grouped-query attention, gated feed-forward and norms in float32, a token keeps in a
    layer ``w`` bytes an element of: both norms' inputs (and 4 bytes of their float32 outputs), the attention's input,
    queries, keys, values and output, the feed-forward's input and four times its width. Scores (5 a s bytes) are only
    kept by eager attention; sdpa and flash attention recompute them. Fused kernels recompute norms and gates.

    With gradient checkpointing each layer keeps its input only (2 s b h), and one layer is whole while it is recomputed.
    Offloaded activations leave a few layers on the device.
    """
    training = plan.training
    width = 2 if training.precision in ("bf16", "fp16") else 4
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = shape.hidden * 2 * (width if training.fused_kernels else width + 4)
    attention = width * (shape.hidden + 2 * query + 2 * key)
    if plan.model.attention == "eager":
        attention += round(2.5 * width) * shape.heads * _count_length(plan)
    feed_forward = width * (shape.hidden + (2 if training.fused_kernels else 4) * shape.intermediate)
    layer = tokens * (norms + attention + feed_forward)
    kept = tokens * width * shape.hidden if training.gradient_checkpointing else layer
    in_flight = min(shape.layers, 5) if training.activation_offload else shape.layers
    return in_flight * kept + (layer if training.gradient_checkpointing else 0)


def _count_logits(shape: ModelShape, plan: TrainingPlan, tokens: int) -> int:
    if OBJECTIVES[plan.objective.type].classifies:
        return 0
    if plan.objective.type in _TILED_LOSS:
        return min(tokens, _TILE[0]) * min(shape.vocabulary, _TILE[1]) * 4
    return tokens * shape.vocabulary * (2 + 4 + 4)


def _count_reference(shape: ModelShape, plan: TrainingPlan, stored: int) -> int:
    objective = plan.objective
    compares = objective.type in ("dpo", "kto") and not objective.precompute_reference
    keeps_near = OBJECTIVES[objective.type].generates and bool(objective.beta)
    # An adapter that is switched off is the reference itself.
    another = objective.reference_model is not None or not METHODS[plan.method.type].adapter
    models = int((compares or keeps_near) and another) + int(objective.reward_model is not None)
    return models * shape.parameters * stored


def _offloads_optimizer(plan: TrainingPlan) -> bool:
    deepspeed, fsdp = plan.parallelism.deepspeed or {}, plan.parallelism.fsdp or {}
    return "offload_optimizer" in deepspeed.get("zero_optimization", {}) or bool(fsdp.get("cpu_offload"))


def find_search_refusal(objective: ObjectiveType, strategy: StrategyType, streaming: bool) -> str | None:
    """Why ``training.autoFindBatchSize`` is refused; None: it is supported."""
    if OBJECTIVES[objective].generates:
        return f"objective.type {objective} makes its rows while it trains, none can be tried before"
    if strategy not in _SEARCHING_STRATEGIES:
        return f"parallelism.strategy {strategy} sets its engine up for one batch size"
    if streaming:
        return "the longest rows of a stream are unknown before its end"
    return None


class Change(NamedTuple):
    """One field of the plan, as a FineTuneJob names it."""

    field: str
    before: Any
    after: Any


class Mend(NamedTuple):
    """A plan that needs less memory."""

    changes: tuple[Change, ...]
    plan: TrainingPlan
    saved: int | None
    """Bytes on each device; None: the model's shape is unknown."""

    def __str__(self) -> str:
        told = " and ".join(f"{each.field}: {_show(each.after)} (now {_show(each.before)})" for each in self.changes)
        return told if self.saved is None else f"{told}, which saves about {format_bytes(self.saved)}"


def format_bytes(count: int) -> str:
    """Bytes in GiB, or in MiB where that says more."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def list_mends(shape: ModelShape | None, plan: TrainingPlan) -> list[Mend]:
    """What would lower the peak, most effective first; without a shape, least costly first."""
    mends = [mend for propose in _PROPOSALS if (mend := propose(plan)) is not None]
    if shape is None:
        return mends
    now = estimate(shape, plan).total
    told = [mend._replace(saved=now - estimate(shape, mend.plan).total) for mend in mends]
    return sorted((mend for mend in told if mend.saved and mend.saved > 0), key=lambda mend: -(mend.saved or 0))


def _mend(plan: TrainingPlan, section: str, **values: Any) -> Mend:
    part = getattr(plan, section)
    fields = type(part).model_fields
    changes = tuple(
        Change(f"{section}.{fields[name].alias}", getattr(part, name), each) for name, each in values.items()
    )
    return Mend(changes, plan.model_copy(update={section: part.model_copy(update=values)}), None)


def split_batch(batch: int, accumulation: int) -> tuple[int, int]:
    """The next smaller batch, and the accumulation that keeps the rows of an optimiser step: half, if that is whole."""
    factor = next((number for number in range(2, batch + 1) if batch % number == 0), 1)
    return batch // factor, accumulation * factor


def _shrink_batch(plan: TrainingPlan) -> Mend | None:
    training = plan.training
    if training.per_device_batch_size == 1:
        return None
    batch, accumulation = split_batch(training.per_device_batch_size, training.gradient_accumulation)
    return _mend(plan, "training", per_device_batch_size=batch, gradient_accumulation=accumulation)


def _checkpoint(plan: TrainingPlan) -> Mend | None:
    # PEFT's prefixes are a cache of keys and values, which checkpointing does without.
    if plan.training.gradient_checkpointing or plan.method.type in ("prefix", "p-tuning-v2"):
        return None
    return _mend(plan, "training", gradient_checkpointing=True)


def _fuse(plan: TrainingPlan) -> Mend | None:
    if plan.training.fused_kernels or plan.parallelism.device == "cpu":
        return None
    return _mend(plan, "training", fused_kernels=True)


def _offload_activations(plan: TrainingPlan) -> Mend | None:
    on_gpu = plan.parallelism.device == "cuda"
    if plan.training.activation_offload or not on_gpu or plan.objective.type not in OFFLOADING_OBJECTIVES:
        return None
    return _mend(plan, "training", activation_offload=True)


def _halve_length(plan: TrainingPlan) -> Mend | None:
    length = plan.training.max_length or ASSUMED_LENGTH
    if length < 128:
        return None
    mend = _mend(plan, "training", max_length=length // 2 // 64 * 64)
    return mend if plan.training.max_length else mend._replace(changes=(mend.changes[0]._replace(before="auto"),))


def _shrink_optimizer(plan: TrainingPlan) -> Mend | None:
    # bitsandbytes doesn't know the sharded tensors of FSDP.
    if OPTIMIZER_BYTES.get(plan.training.optimizer, 8) < 8 or plan.parallelism.strategy == "fsdp":
        return None
    return _mend(plan, "training", optimizer="adamw_8bit" if plan.parallelism.device == "cpu" else "paged_adamw_8bit")


def _share(plan: TrainingPlan) -> Mend | None:
    if plan.parallelism.world_size == 1 or "parameters" in STRATEGIES[plan.parallelism.strategy].shards:
        return None
    return _mend(plan, "parallelism", strategy="zero3")


def _train_less(plan: TrainingPlan) -> Mend | None:
    method = plan.method
    if method.type == "full" or method.type == "freeze":
        lora = LoraPlan(rank=16, alpha=32.0, dropout=0.05, target_modules=("all-linear",))
        changed = MethodPlan(type="lora", lora=lora)
    elif method.type == "lora":
        quantization = QuantizationPlan(bits=4, type="nf4", double_quant=True, compute_dtype=plan.model.dtype)
        changed = method.model_copy(update={"type": "qlora", "quantization": quantization})
    else:
        return None
    change = Change("method.type", method.type, changed.type)
    return Mend((change,), plan.model_copy(update={"method": changed}), None)


_PROPOSALS: tuple[Callable[[TrainingPlan], Mend | None], ...] = (
    _shrink_batch,
    _checkpoint,
    _fuse,
    _offload_activations,
    _shrink_optimizer,
    _train_less,
    _share,
    _halve_length,
)
"""In the order of what they cost: nothing, time, precision, data."""


def list_parts(estimated: Estimate) -> Iterator[tuple[str, int]]:
    """Name and bytes of each part that is there."""
    for name, size in zip(Estimate._fields, estimated, strict=True):
        if size:
            yield name, size
