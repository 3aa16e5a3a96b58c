"""LoRA, QLoRA and full fine-tuning, and what they export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import TrainingPlan
from finetune_trainer.export.verify import ArtifactMismatchError
from finetune_trainer.files import hash_folder
from tests.trainer.running import losses, run

NF4 = {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "float32"}
INT8 = {"bits": 8, "type": "int8", "double_quant": False, "compute_dtype": "float32"}
BOTH = {"artifacts": ("adapter", "merged"), "verify": True}
ROW = [[0, 117, 82, 301, 77, 1, 45, 410]]


def _logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor(ROW)).logits


def _plain_merged(plan: TrainingPlan) -> Any:
    """The merged artifact by plain transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(Path(plan.output.directory) / "merged")


def _plain_adapter(plan: TrainingPlan) -> Any:
    """The adapter artifact on its base, by plain PEFT."""
    from peft import PeftModel

    from finetune_trainer.model.load import load_base

    base = load_base(plan, plan.model.source.location, "cpu")
    return PeftModel.from_pretrained(base, Path(plan.output.directory) / "adapter")


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ({}, "fp32"),
        ({"type": "qlora", "quantization": NF4}, "fp32"),
        ({"type": "qlora", "quantization": INT8}, "fp32"),
        ({"type": "qlora", "quantization": {**NF4, "compute_dtype": "bfloat16"}}, "bf16"),
    ],
    ids=["lora", "qlora nf4", "qlora int8", "qlora nf4 bf16"],
)
def test_adapters_train_and_merge(make: Callable[..., TrainingPlan], method: dict[str, Any], precision: str) -> None:
    plan = make(
        method=method,
        output=BOTH,
        model={"dtype": "bfloat16" if precision == "bf16" else "float32"},
        training={"precision": precision, "gradient_checkpointing": precision == "bf16"},
    )
    result = run(plan)
    assert result.eval_loss_before is not None and result.eval_loss is not None
    assert result.eval_loss < result.eval_loss_before
    assert losses(plan)[-1] < losses(plan)[0]
    assert [artifact.type for artifact in result.artifacts] == ["adapter", "merged"]
    for artifact in result.artifacts:
        assert hash_folder(Path(artifact.path)) == artifact.sha256
        assert {"tokenizer.json", "chat_template.jinja"} <= {path.name for path in Path(artifact.path).iterdir()}

    merged, adapter = _plain_merged(plan), _plain_adapter(plan)
    tolerance = 1e-3 if precision == "fp32" and method.get("quantization") != INT8 else 0.1
    assert (_logits(merged) - _logits(adapter)).abs().max() < tolerance
    # The base alone is further off, or the comparison would say nothing.
    with adapter.disable_adapter():
        assert (_logits(merged) - _logits(adapter)).abs().max() > 0.3
    assert "quantization_config" not in json.loads((Path(plan.output.directory) / "merged/config.json").read_text())
    assert str(merged.dtype) == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]


def test_qlora_trains_its_adapter_in_float32(make: Callable[..., TrainingPlan]) -> None:
    from safetensors.torch import load_file

    plan = make(
        method={"type": "qlora", "quantization": {**NF4, "compute_dtype": "bfloat16"}},
        model={"dtype": "bfloat16"},
        training={"max_steps": 1, "epochs": None, "precision": "bf16"},
    )
    run(plan)
    weights = load_file(Path(plan.output.directory) / "adapter" / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}


def test_an_evaluation_leaves_quantised_weights_alone(make: Callable[..., TrainingPlan]) -> None:
    """bitsandbytes rounds the scales of a 4-bit layer at its first evaluation on some CPUs."""
    import torch

    from finetune_trainer.model.load import load_base

    plan = make(method={"type": "qlora", "quantization": NF4})
    model = load_base(plan, plan.model.source.location, "cpu")
    layer = model.model.layers[0].self_attn.q_proj
    before = layer.weight.data.clone()
    _logits(model)
    assert torch.equal(layer.weight.data, before)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_full_fine_tuning_exports_the_model(make: Callable[..., TrainingPlan]) -> None:
    plan = make(method={"type": "full", "lora": None}, output={"artifacts": ("merged",), "verify": True})
    result = run(plan)
    assert result.trainable_parameters == result.total_parameters
    assert result.eval_loss is not None and result.eval_loss < (result.eval_loss_before or 0)
    merged = _plain_merged(plan)
    assert merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()


def test_a_wrong_artifact_is_not_published(make: Callable[..., TrainingPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    save = PeftModel.save_pretrained

    def save_scaled(self: Any, folder: Any, **kwargs: Any) -> None:
        save(self, folder, **kwargs)
        config = Path(folder) / "adapter_config.json"
        if config.parent.parent.name.startswith(".export-"):
            config.write_text(config.read_text().replace('"lora_alpha": 8.0', '"lora_alpha": 16.0'))

    monkeypatch.setattr(PeftModel, "save_pretrained", save_scaled)
    plan = make(output={"verify": True}, training={"max_steps": 4, "epochs": None})
    with pytest.raises(ArtifactMismatchError, match="the adapter artifact, reloaded, gives other logits"):
        run(plan)
    assert list(Path(plan.output.directory).iterdir()) == []


def test_samples_are_answered_before_and_after(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    data = tmp_path / "one-answer.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"Is it {number}?"}]} for number in range(12)]
    answer = [{"role": "assistant", "content": "Yes, indeed"}]
    data.write_text("".join(json.dumps({**row, "completion": answer}) + "\n" for row in rows))
    prompts = ("Is it 20?", "Tell me, is it 21 or is it not?")
    plan = make(
        data=data,
        method={"type": "full", "lora": None},
        dataset={"validation_fraction": None},
        evaluation={"samples": prompts, "sample_tokens": 6},
        checkpoint={"every_steps": 99},
        output={"artifacts": ("merged",)},
        training={"epochs": 8.0},
    )
    result = run(plan)
    assert [sample.prompt for sample in result.samples] == list(prompts)
    assert [sample.after for sample in result.samples] == ["Yes, indeed", "Yes, indeed"]
    assert "Yes, indeed" not in [sample.before for sample in result.samples]
    kept = json.loads((Path(plan.checkpoint.directory) / "samples-before.json").read_text())
    assert kept["answers"] == [sample.before for sample in result.samples]
