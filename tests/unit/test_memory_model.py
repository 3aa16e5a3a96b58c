"""The memory model against published parameter counts and the figures of practice."""

from typing import Any

import pytest

from finetune_api.memory import (
    GIB,
    OVERHEAD_BYTES,
    ModelShape,
    count_trainable,
    estimate,
    find_shape,
    list_mends,
    parse_shape,
)
from finetune_api.plan import LoraPlan, MethodPlan, QuantizationPlan, TrainingPlan
from finetune_api.presets import draft_plan
from finetune_api.strategies import StrategyType

FULL = MethodPlan(type="full")
LORA = MethodPlan(type="lora", lora=LoraPlan(rank=16, alpha=32, dropout=0.05, target_modules=("all-linear",)))
QLORA = MethodPlan(
    type="qlora",
    lora=LORA.lora,
    quantization=QuantizationPlan(bits=4, type="nf4", double_quant=True, compute_dtype="bfloat16"),
)


def change(plan: TrainingPlan, section: str, **values: Any) -> TrainingPlan:
    return plan.model_copy(update={section: getattr(plan, section).model_copy(update=values)})


def shape_of(name: str) -> ModelShape:
    shape = find_shape(name)
    assert shape is not None
    return shape


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("hf://meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("hf://meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("hf://meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("hf://meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("hf://Qwen/Qwen2.5-0.5B", 494_032_768),
        ("hf://Qwen/Qwen2.5-Coder-7B-Instruct", 7_615_616_512),
        ("hf://Qwen/Qwen3-8B", 8_190_735_360),
        ("hf://mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("hf://google/gemma-2-2b-it", 2_614_341_888),
        ("hf://google/gemma-3-1b-it", 999_885_952),
        ("hf://HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("file:///models/SmolLM2-1.7B-Instruct.Q8_0.gguf", 1_711_376_384),
        ("hf://TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("hf://microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
        ("hf://microsoft/phi-4", 14_659_507_200),
    ],
)
def test_known_models_have_their_published_parameters(name: str, parameters: int) -> None:
    assert shape_of(name).parameters == parameters


def test_other_models_go_by_the_size_in_their_name() -> None:
    assert shape_of("hf://acme/Foo-13B-v2").parameters == 13_000_000_000
    assert shape_of("hf://acme/foo-350m").layers == shape_of("SmolLM2-360M").layers
    assert find_shape("hf://acme/support-bot") is None
    assert find_shape("pvc://models/base") is None


def test_a_configuration_says_the_shape_and_foreign_ones_none() -> None:
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    }
    assert parse_shape(config) == shape_of("Qwen3-8B")
    assert parse_shape({"n_embd": 768, "n_layer": 12}) is None


def test_7b_full_is_112_gb_without_activations() -> None:
    """Float32 weights and gradients and AdamW's two moments: 16 bytes a parameter."""
    shape = shape_of("acme-7B")
    needed = estimate(shape, draft_plan(FULL, 1, "single", 1, 2048))
    assert (needed.weights + needed.gradients + needed.optimizer) / 1e9 == pytest.approx(112)
    assert needed.optimizer / 1e9 == pytest.approx(56)
    assert needed.overhead == OVERHEAD_BYTES == 1.5 * GIB
    assert needed.total == sum(needed)


@pytest.mark.parametrize("model", ["Llama-2-7b", "Qwen2.5-7B", "Mistral-7B"])
def test_7b_lora_is_16_to_24_gb_and_qlora_6_to_12(model: str) -> None:
    for batch in (1, 4):
        lora = estimate(shape_of(model), draft_plan(LORA, 1, "single", batch, 1024))
        qlora = estimate(shape_of(model), draft_plan(QLORA, 1, "single", batch, 1024))
        assert 16 <= lora.total / 1e9 <= 24
        assert 6 <= qlora.total / 1e9 <= 12


def test_65b_qlora_fits_48_gb() -> None:
    """The QLoRA paper's claim; full fine-tuning in 16 bits needs more than 780 GB."""
    shape = shape_of("llama-65b")
    assert estimate(shape, draft_plan(QLORA, 1, "single", 1, 512)).total < 48e9
    assert estimate(shape, draft_plan(FULL, 1, "single", 1, 512)).total > 780e9


@pytest.mark.parametrize(
    ("strategy", "shared"),
    [
        ("ddp", ()),
        ("zero1", ("optimizer",)),
        ("zero2", ("optimizer", "gradients")),
        ("zero3", ("optimizer", "gradients", "weights")),
        ("fsdp", ("optimizer", "gradients", "weights")),
    ],
)
def test_a_strategy_shares_out_what_it_says(strategy: StrategyType, shared: tuple[str, ...]) -> None:
    shape = shape_of("Llama-3.1-8B")
    alone = estimate(shape, draft_plan(FULL, 1, strategy, 1, 2048))
    of_eight = estimate(shape, draft_plan(FULL, 8, strategy, 1, 2048))
    for part in ("weights", "gradients", "optimizer"):
        ratio = getattr(of_eight, part) / getattr(alone, part)
        assert ratio == pytest.approx(1 / 8, abs=0.06) if part in shared else ratio == 1, part
    assert of_eight.activations == alone.activations


def test_zero_needs_16_bytes_a_parameter_in_all() -> None:
    """2 + 2 + 12 (Rajbhandari et al. 2019, section 3)."""
    needed = estimate(shape_of("acme-7B"), draft_plan(FULL, 1, "zero2", 1, 2048))
    assert [part / 7e9 for part in needed[:4]] == pytest.approx([2, 0, 2, 12])


def test_what_each_setting_saves() -> None:
    shape, plan = shape_of("Llama-3.1-8B"), draft_plan(LORA, 1, "single", 4, 2048)
    base = estimate(shape, plan)
    whole = estimate(shape, change(plan, "training", gradient_checkpointing=False))
    assert whole.activations > 10 * base.activations
    assert estimate(shape, change(plan, "training", fused_kernels=True)).activations < base.activations
    assert estimate(shape, change(plan, "training", activation_offload=True)).activations < base.activations
    assert estimate(shape, change(plan, "training", precision="fp32")).activations > 1.5 * base.activations
    assert estimate(shape, change(plan, "training", optimizer="paged_adamw_8bit")).optimizer * 4 == base.optimizer
    assert estimate(shape, change(plan, "training", optimizer="adafactor")).optimizer == 0
    eager = estimate(shape, change(plan, "model", attention="eager"))
    assert eager.activations - base.activations == 4 * 2048 * 5 * 32 * 2048
    half = estimate(shape, change(plan, "training", per_device_batch_size=2))
    assert half.activations * 2 == base.activations


def test_objectives_keep_more_rows_and_models() -> None:
    shape = shape_of("Llama-3.1-8B")
    sft = estimate(shape, draft_plan(FULL, 1, "single", 1, 1024))
    dpo = change(draft_plan(FULL, 1, "single", 1, 1024), "objective", type="dpo", beta=0.1)
    assert estimate(shape, dpo).activations == 2 * sft.activations
    assert estimate(shape, dpo).reference == 4 * shape.parameters
    assert estimate(shape, change(dpo, "objective", precompute_reference=True)).reference == 0
    # An adapter that is switched off is the reference.
    assert estimate(shape, dpo.model_copy(update={"method": LORA})).reference == 0
    ppo = change(draft_plan(LORA, 1, "single", 1, 1024), "objective", type="ppo", beta=0.05)
    assert estimate(shape, ppo).logits == 1024 * 128256 * 10


def test_lora_counts_rank_times_inputs_and_outputs() -> None:
    """Hu et al. 2021: 8 x (4096 + 4096) for each projection of Llama-2-7B."""
    lora = LoraPlan(rank=8, alpha=16, dropout=0, target_modules=("q_proj",))
    assert count_trainable(shape_of("Llama-2-7b"), MethodPlan(type="lora", lora=lora)) == 32 * 65536


def test_mends_are_sorted_by_what_they_save() -> None:
    plan = change(draft_plan(LORA, 1, "single", 4, 2048), "training", gradient_checkpointing=False)
    mends = list_mends(shape_of("Llama-3.1-8B"), plan)
    saved = [mend.saved or 0 for mend in mends]
    assert saved == sorted(saved, reverse=True) and min(saved) > 0
    assert str(mends[0]).startswith("training.gradientCheckpointing: true (now false), which saves about ")
    told = [str(mend) for mend in mends]
    batch = "training.perDeviceBatchSize: 2 (now 4) and training.gradientAccumulation: 8 (now 4), which saves about "
    assert any(each.startswith(batch) for each in told)
    for mend in mends:
        assert estimate(shape_of("Llama-3.1-8B"), mend.plan).total < estimate(shape_of("Llama-3.1-8B"), plan).total


def test_mends_of_an_unknown_model_have_no_figure() -> None:
    mends = list_mends(None, draft_plan(FULL, 2, "ddp", 1, 2048))
    told = [str(mend) for mend in mends]
    assert "method.type: lora (now full)" in told and "parallelism.strategy: zero3 (now ddp)" in told
    assert not any("saves" in each for each in told)
