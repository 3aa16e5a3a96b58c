"""GGUF files of every family, read again by plain transformers; models and tokenizers that the format can't hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import GgufType, TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.export.gguf import FILE_NAME, compare_gguf, reload_gguf, require_exportable, write_gguf
from finetune_trainer.export.verify import ArtifactMismatchError, compute_logits
from tests.trainer.running import Recorder, run

TEXT = "<|im_start|>user\nHello wörld, it's 123!\n\n  Fine<|im_end|>"
ROWS = [[0, 117, 82, 301, 77, 1, 45, 410], [3, 200, 17, 99, 500, 1]]


def _build(family: str, tokenizer: Any, **settings: Any) -> Any:
    """A random model whose norms and biases aren't all one or zero, as they are before training."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        # Rows beyond the tokenizer's, as Qwen has them.
        vocab_size=len(tokenizer) + 3,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.15)
    return model


LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA_3}),
        ("Mistral", {}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
    ],
    ids=["llama tied", "llama with biases and scaled rope", "mistral", "qwen2", "qwen3"],
)
def test_what_is_read_is_what_was_written(
    tiny_model: Path, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    """Each tensor is the very one that its rounding leaves, in f16, q8_0 and q4_0; and the tokenizer is the model's."""
    import torch
    from gguf import GGMLQuantizationType, quants
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = _build(family, tokenizer, **settings)
    model.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    expected = compute_logits(model, ROWS)
    kinds: tuple[GgufType, ...] = ("f16", "q8_0", "q4_0")
    sizes = []
    for kind in kinds:
        write_gguf(tmp_path / "merged", tmp_path / kind, kind)
        reloaded = reload_gguf(tmp_path / kind, tmp_path / "merged", torch.device("cpu"))
        difference = compare_gguf(kind, ROWS, expected, compute_logits(reloaded, ROWS))
        print(f"{family} {kind}: logits differ by {difference:.2g} of the largest")
        read = reloaded.state_dict()
        for name, values in model.state_dict().items():
            type_ = GGMLQuantizationType.F32 if values.ndim == 1 else GGMLQuantizationType[kind.upper()]
            if kind == "q4_0" and ("embed_tokens" in name or "lm_head" in name):
                type_ = GGMLQuantizationType.Q8_0
            rounded = quants.dequantize(quants.quantize(values.numpy(), type_), type_)
            assert torch.equal(read[name], torch.from_numpy(rounded)), name
        sizes.append((tmp_path / kind / FILE_NAME).stat().st_size)
    assert sizes[0] > 1.6 * sizes[1] > 1.6 * sizes[2]
    read_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "f16", gguf_file=FILE_NAME)
    assert read_tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert read_tokenizer.chat_template == tokenizer.chat_template
    assert (read_tokenizer.eos_token, read_tokenizer.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)


def test_what_transformers_does_not_read(tiny_model: Path, tmp_path: Path) -> None:
    """llama.cpp takes Llama 3's scaling from a tensor of factors, and the sizes of heads from keys."""
    import numpy
    from gguf import GGUFReader
    from transformers import AutoTokenizer
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = _build("Llama", tokenizer, rope_parameters=LLAMA_3)
    model.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    write_gguf(tmp_path / "merged", tmp_path / "gguf", "f16")
    reader = GGUFReader(tmp_path / "gguf" / FILE_NAME)
    factors = next(tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    frequencies = 10000.0 ** (-2 / 16 * numpy.arange(8))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    assert frequencies / factors == pytest.approx(scaled.numpy(), rel=1e-5)
    assert factors.max() == pytest.approx(8.0) and factors.min() == pytest.approx(1.0)
    assert reader.get_field("llama.attention.key_length").contents() == 16
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"
    assert reader.get_field("tokenizer.ggml.tokens").contents()[-1] == f"[PAD{len(tokenizer) + 2}]"


def test_sentencepiece_tokenizers(tmp_path: Path, tiny_model: Path) -> None:
    """Llama 2's and Mistral's kind: merges become scores, bytes stand for what the vocabulary lacks."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers
    from tokenizers import decoders as d
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.train_from_iterator(
        Path(__file__).read_text().splitlines(), trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    learnt = json.loads(learner.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    model = models.BPE(
        {token: number for number, token in enumerate(tokens)},
        [tuple(merge) for merge in learnt["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = learner.normalizer
    backend.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    _build("Llama", tokenizer).save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    write_gguf(tmp_path / "merged", tmp_path / "gguf", "f16")
    read = AutoTokenizer.from_pretrained(tmp_path / "gguf", gguf_file=FILE_NAME)
    for text in ("def test the tokenizer of a model", "wörld ☃ import", "return [number]"):
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"], text


def test_a_run_exports_it_verified(make: Callable[..., TrainingPlan]) -> None:
    plan = make(
        output={"artifacts": ("adapter", "merged", "gguf"), "verify": True, "gguf_type": "q8_0"},
        training={"max_steps": 3, "epochs": None},
    )
    recorder = Recorder()
    result = run(plan, recorder)
    differences = {artifact.type: artifact.difference for artifact in result.artifacts}
    assert set(differences) == {"adapter", "merged", "gguf"}
    assert all(difference is not None for difference in differences.values())
    assert differences["adapter"] < 1e-4 and differences["merged"] < 1e-3 and 1e-6 < differences["gguf"] < 5e-2
    assert [message.split()[1] for message in recorder.messages("verified")] == ["adapter", "merged", "gguf"]
    assert [path.name for path in (Path(plan.output.directory) / "gguf").iterdir()] == [FILE_NAME]


def test_a_wrong_file_is_not_published(
    make: Callable[..., TrainingPlan], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a head in the order of transformers instead of llama.cpp's: most files that went wrong went wrong so."""
    from transformers import AutoTokenizer

    from finetune_trainer.export import gguf

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    _build("Llama", tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(gguf, "_interleave", lambda values, heads: values)
    plan = make(
        model_folder=tmp_path / "model",
        output={"artifacts": ("gguf",), "verify": True},
        training={"max_steps": 1, "epochs": None, "learning_rate": 1e-4},
    )
    with pytest.raises(ArtifactMismatchError, match=r"the gguf artifact, reloaded, isn't the merged model.*for f16 is"):
        run(plan)
    assert list(Path(plan.output.directory).iterdir()) == []


def test_refused_before_training(make: Callable[..., TrainingPlan], tiny_model: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, GemmaConfig, LlamaConfig

    plan = make(output={"artifacts": ("gguf",)})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(InvalidInputError, match=r"of type gemma, only llama, mistral, qwen2, qwen3 can be; use merged"):
        require_exportable(plan, GemmaConfig(), tokenizer)
    scaled = LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(InvalidInputError, match="rotary embeddings are scaled by dynamic"):
        require_exportable(plan, scaled, tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InvalidInputError, match=r"the tokenizer can't be: it splits text in a way .*: Whitespace"):
        require_exportable(plan, LlamaConfig(), tokenizer)
    require_exportable(make(output={"artifacts": ("merged",)}), GemmaConfig(), tokenizer)
