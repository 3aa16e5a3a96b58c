"""The methods train what plain scripts with PEFT and TRL train."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.methods import MethodType
from finetune_api.plan import TrainingPlan
from tests.trainer.adapters import PARTS, STEPS, plan_method
from tests.trainer.plans import write_conversations
from tests.trainer.running import losses, run

TARGETS = ("q_proj", "v_proj", "down_proj")


def _plain_trl(plan: TrainingPlan, data: Path, output: Path, adapter: Any, callbacks: list[Any]) -> list[float]:
    """The losses of the script that a person would write for the same thing."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    location = plan.model.source.location
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(location),
        train_dataset=load_dataset("json", data_files=str(data), split="train", cache_dir=str(output / "cache")),
        args=SFTConfig(
            output_dir=str(output),
            max_steps=STEPS,
            learning_rate=plan.training.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            gradient_checkpointing=False,
            optim="adamw_torch",
            seed=plan.training.seed,
            max_length=plan.training.max_length,
            max_grad_norm=plan.training.max_grad_norm,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        peft_config=adapter,
        callbacks=callbacks,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def compare(tiny_model: Path, tmp_path: Path) -> Callable[..., None]:
    """``compare(method, adapter, *callbacks)``: our losses are those of the plain script."""

    def compare(method: MethodType, adapter: Any, *callbacks: Any, **part: Any) -> None:
        data = write_conversations(tmp_path / "rows.jsonl", 12)
        plan = plan_method(
            method,
            tmp_path / "ours",
            tiny_model,
            data,
            method=PARTS[method] | part,
            objective={"response_only": False},
            output={"artifacts": ("adapter",), "verify": False},
            training={"max_grad_norm": 1e9},
        )
        run(plan)
        ours, theirs = losses(plan), _plain_trl(plan, data, tmp_path / "theirs", adapter, list(callbacks))
        print(method, max(abs(one - other) for one, other in zip(ours, theirs, strict=True)))
        assert len(ours) == STEPS and ours[-1] < ours[0]
        assert ours == pytest.approx(theirs, abs=1e-6)

    return compare


def test_dora_equals_plain_peft(compare: Callable[..., None]) -> None:
    from peft import LoraConfig

    adapter = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"
    )
    compare("dora", adapter)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["PEFT's modules", "named modules"])
def test_ia3_equals_plain_peft(compare: Callable[..., None], targets: tuple[str, ...] | None) -> None:
    from peft import IA3Config

    named = {"target_modules": list(TARGETS), "feedforward_modules": ["down_proj"]} if targets else {}
    compare("ia3", IA3Config(task_type="CAUSAL_LM", **named), ia3={"target_modules": targets})


def test_p_tuning_v2_equals_plain_peft(compare: Callable[..., None]) -> None:
    from peft import PrefixTuningConfig

    compare("p-tuning-v2", PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))


def test_adalora_equals_plain_peft(compare: Callable[..., None]) -> None:
    """With PEFT's budget updated where its documentation says, and the paper's regularisation, whose gradient autograd
    finds: TRL's loss is none that PEFT could add it to."""
    import torch
    from peft import AdaLoraConfig
    from transformers import TrainerCallback

    class Budget(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            named = dict(model.named_parameters())
            matrices = {name: p for name, p in named.items() if "lora_A.default" in name or "lora_B.default" in name}
            distances = []
            for name, matrix in matrices.items():
                square = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
                distances.append(torch.norm(square - torch.eye(len(square)), p="fro"))
            (0.5 * sum(distances) / len(distances)).backward()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            model.base_model.update_and_allocate(state.global_step)

    adapter = AdaLoraConfig(
        init_r=6,
        target_r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        total_step=STEPS,
        tinit=0,
        tfinal=1,
        deltaT=1,
    )
    compare("adalora", adapter, Budget())
