"""The merged model as one GGUF file, for llama.cpp and what is built on it; written by the ``gguf`` package."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

from finetune_api.plan import GgufType, TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.export.gguf_tokenizer import UnknownTokenizerError, add_vocabulary, read_vocabulary
from finetune_trainer.export.verify import ArtifactMismatchError, compute_logits

FILE_NAME = "model.gguf"

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model type -> llama.cpp's architecture."""

_SCALINGS = ("default", "linear", "yarn", "llama3")
"""Kinds of rotary embeddings that the format can name."""

_UNREAD = ("rope_parameters", "head_dim", "attention_bias", "mlp_bias")
"""Fields of a model's configuration that are in the file, and that transformers doesn't take from there."""

_BLOCK = 32
"""Values that share a scale in q8_0 and q4_0; a row has to be whole blocks."""

_DIFFERENCE: dict[GgufType, float] = {"f16": 2e-3, "q8_0": 5e-2, "q4_0": 1.0}
"""Largest difference of two logits, as a share of the largest logit (at least 1), that rounding the weights so may make."""

_PERPLEXITY: dict[GgufType, float] = {"f16": 1.01, "q8_0": 1.05, "q4_0": 1.5}
"""Largest ratio of the perplexities, either way, on the compared rows."""


def require_exportable(plan: TrainingPlan, config: Any, tokenizer: Any) -> None:
    """Raises: InvalidInputError when the plan wants GGUF and the format has no name for such a model or tokenizer."""
    if "gguf" not in plan.output.artifacts:
        return
    scaling = config.rope_parameters["rope_type"] if config.model_type in _ARCHITECTURES else None
    problem = None
    if scaling is None:
        problem = f"the model is of type {config.model_type}, only {', '.join(_ARCHITECTURES)} can be"
    elif scaling not in _SCALINGS:
        problem = f"the model's rotary embeddings are scaled by {scaling}, only {', '.join(_SCALINGS)} can be"
    else:
        try:
            read_vocabulary(tokenizer, config.vocab_size)
        except UnknownTokenizerError as error:
            problem = f"the tokenizer can't be: {error}"
    if problem is not None:
        raise InvalidInputError(
            f"output.artifacts gguf: model.source {plan.model.source.uri} can't be written as GGUF: {problem}; "
            "use merged"
        )


def write_gguf(merged: Path, folder: Path, kind: GgufType) -> None:
    """Write the model in the folder ``merged`` as ``folder/model.gguf``, its matrices in ``kind``."""
    from gguf import GGUFWriter
    from transformers import AutoConfig, AutoTokenizer

    folder.mkdir(parents=True)
    config = AutoConfig.from_pretrained(merged)
    writer = GGUFWriter(folder / FILE_NAME, _ARCHITECTURES[config.model_type], use_temp_file=True)
    _add_architecture(writer, config, kind)
    add_vocabulary(writer, AutoTokenizer.from_pretrained(merged), config.vocab_size)
    for name, values, quantised in _read_tensors(merged, config, kind):
        writer.add_tensor(name, values, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def reload_gguf(folder: Path, merged: Path, device: torch.device) -> Any:
    """The file as transformers reads it, in float32.

    It doesn't read everything that llama.cpp does: what ``_UNREAD`` names is taken from the ``merged`` model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    config = AutoConfig.from_pretrained(merged)
    read = AutoConfig.from_pretrained(folder, gguf_file=FILE_NAME)
    for name in _UNREAD:
        if hasattr(config, name):
            setattr(read, name, getattr(config, name))
    return AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=FILE_NAME,
        config=read,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        device_map={"": str(device)},
    ).eval()


def verify_gguf(folder: Path, merged: Path, kind: GgufType, rows: list[list[int]], device: torch.device) -> float:
    """How far the file, reloaded, is from the ``merged`` model, both in float32.

    Raises: ArtifactMismatchError.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, device_map={"": str(device)})
    expected = compute_logits(model.eval(), rows)
    del model
    return compare_gguf(kind, rows, expected, compute_logits(reload_gguf(folder, merged, device), rows))


def compare_gguf(
    kind: GgufType, rows: list[list[int]], expected: list[torch.Tensor], reloaded: list[torch.Tensor]
) -> float:
    """The largest difference of two logits, as a share of the largest logit (at least 1).

    Raises: ArtifactMismatchError when it, or that of the perplexities, is beyond what rounding to ``kind`` makes.
    """
    scale = max(1.0, *(float(logits.abs().max()) for logits in expected))
    difference = max(float((one - other).abs().max()) for one, other in zip(expected, reloaded, strict=True)) / scale
    ratio = math.exp(abs(_mean_loss(rows, reloaded) - _mean_loss(rows, expected)))
    # Written so that a NaN fails, too.
    if not (difference <= _DIFFERENCE[kind] and ratio <= _PERPLEXITY[kind]):
        raise ArtifactMismatchError(
            f"the gguf artifact, reloaded, isn't the merged model: its logits differ by up to {difference:.2g} of the "
            f"largest one, allowed for {kind} is {_DIFFERENCE[kind]:g}, and its perplexity by a factor of {ratio:.4g}, "
            f"allowed is {_PERPLEXITY[kind]:g}; nothing was published"
        )
    return difference


def _mean_loss(rows: list[list[int]], logits: list[torch.Tensor]) -> float:
    """Mean loss of the rows' tokens after the first one."""
    losses = [
        torch.nn.functional.cross_entropy(each[:-1], torch.tensor(row[1 : len(each)]), reduction="none")
        for row, each in zip(rows, logits, strict=True)
    ]
    return float(torch.cat(losses).mean())


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_architecture(writer: Any, config: Any, kind: GgufType) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    file_types = {
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
        "q4_0": LlamaFileType.MOSTLY_Q4_0,
    }
    writer.add_file_type(file_types[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_head_size(config))
    _add_rope(writer, config.rope_parameters)


def _add_rope(writer: Any, rope: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _read_tensors(merged: Path, config: Any, kind: GgufType) -> Iterator[tuple[str, numpy.ndarray, Any]]:
    """Name, values and quantisation (None: as they are) of each tensor of the file."""
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map, quants
    from safetensors import safe_open

    architecture = _ARCHITECTURES[config.model_type]
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _rope_factors(config), None
    for shard in sorted(merged.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for source in file.keys():  # noqa: SIM118  no mapping
                if config.tie_word_embeddings and source == "lm_head.weight":
                    continue
                values = file.get_tensor(source).float().numpy()
                module = source.rsplit(".", 2)[-2]
                if architecture == "llama" and module in heads:
                    values = _interleave(values, heads[module])
                target = names.get_name(source, try_suffixes=(".weight", ".bias"))
                if values.ndim == 1:
                    yield target, values, None
                    continue
                type_ = GGMLQuantizationType[_choose_type(kind, target, values.shape[-1]).upper()]
                yield target, quants.quantize(values, type_), type_


def _choose_type(kind: GgufType, name: str, width: int) -> GgufType:
    """Embeddings and head lose most by four bits, and rows of broken blocks can't be had: both are kept finer."""
    if width % _BLOCK:
        return "f16"
    return "q8_0" if kind == "q4_0" and name in ("token_embd.weight", "output.weight") else kind


def _interleave(values: numpy.ndarray, heads: int) -> numpy.ndarray:
    """llama.cpp rotates neighbours where transformers rotates halves: the rows of each head in its order."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _rope_factors(config: Any) -> numpy.ndarray:
    """By what Llama 3's scaling divides each frequency of the rotary embedding."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    size, base = _head_size(config), config.rope_parameters["rope_theta"]
    plain = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled).numpy()
