"""The trainer trains what a plain TRL script trains."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.objectives import DPO_LOSSES, Rows
from finetune_api.plan import TrainingPlan
from tests.trainer.conftest import adapter_bytes
from tests.trainer.matrix.plans import write_rows
from tests.trainer.plans import make_plan, write_conversations
from tests.trainer.running import Recorder, losses, run
from tests.trainer.templates import CHATML


def _plain_trl(plan: TrainingPlan, data: Path, output: Path, **settings: Any) -> Any:
    """The script that a person would write with TRL for the same thing, on its own data preparation."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    training, lora = plan.training, plan.method.lora
    location = plan.model.source.location
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(location),
        train_dataset=load_dataset("json", data_files=str(data), split="train", cache_dir=str(output / "cache")),
        args=SFTConfig(
            output_dir=str(output),
            num_train_epochs=training.epochs,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.scheduler,
            warmup_steps=training.warmup_ratio,
            weight_decay=training.weight_decay,
            per_device_train_batch_size=training.per_device_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation,
            gradient_checkpointing=False,
            optim=training.optimizer,
            seed=training.seed,
            max_length=training.max_length,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        peft_config=lora
        and LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.save_model(str(output / "final"))
    return trainer


def _as_prompt_completion(data: Path, path: Path) -> Path:
    rows = [json.loads(line)["messages"] for line in data.read_text().splitlines()]
    path.write_text("".join(json.dumps({"prompt": row[:1], "completion": row[1:]}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("response_only", [True, False], ids=["responses", "all tokens"])
def test_lora_equals_plain_trl(make: Callable[..., TrainingPlan], tmp_path: Path, response_only: bool) -> None:
    """Same seed and data, dropout on: the same loss at each step and the same adapter, bit for bit."""
    data = write_conversations(tmp_path / "rows.jsonl")
    plan = make(data=data, dataset={"validation_fraction": None}, objective={"response_only": response_only})
    run(plan)
    same_rows = _as_prompt_completion(data, tmp_path / "pairs.jsonl") if response_only else data
    theirs = _plain_trl(plan, same_rows, tmp_path / "trl")
    assert losses(plan) == [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert adapter_bytes(plan) == (tmp_path / "trl" / "final" / "adapter_model.safetensors").read_bytes()


def test_full_fine_tuning_equals_plain_trl(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    data = write_conversations(tmp_path / "rows.jsonl")
    plan = make(
        data=data,
        dataset={"validation_fraction": None},
        objective={"response_only": False},
        method={"type": "full", "lora": None},
        training={"epochs": 1.0},
        output={"artifacts": ("merged",)},
    )
    run(plan)
    _plain_trl(plan, data, tmp_path / "trl")
    ours = load_file(Path(plan.output.directory) / "merged" / "model.safetensors")
    theirs = load_file(tmp_path / "trl" / "final" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


TEMPLATE = CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor")
"""Ends each turn with the end token: TRL's ORPOTrainer would add another one behind a line break."""


@dataclass(frozen=True)
class _Case:
    """One objective by this project and by TRL: the same rows as people write them, the same settings."""

    objective: dict[str, Any]
    trainer: str
    settings: dict[str, Any]
    rows: Rows = "preference"


def _dpo(loss: str) -> _Case:
    smoothing = 0.1 if loss in ("robust", "exo_pair") else 0.0
    return _Case(
        {"type": "dpo", "beta": 0.3, "losses": (loss,), "label_smoothing": smoothing},
        "DPO",
        {"beta": 0.3, "loss_type": [loss], "label_smoothing": smoothing},
    )


def _rate(completions: list[Any], **columns: Any) -> list[float]:
    """The share of vowels, of answers as text or as messages."""
    texts = [answer if isinstance(answer, str) else answer[0]["content"] for answer in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


_SAMPLED = {
    "reward_functions": (f"{__name__}:_rate",),
    "generation": {"completions": 4, "max_tokens": 8, "temperature": 0.9, "top_p": 0.95},
}
_SAMPLING = {"num_generations": 4, "max_completion_length": 8, "temperature": 0.9, "top_p": 0.95}
_CASES = {
    **{f"dpo {loss}": _dpo(loss) for loss in DPO_LOSSES},
    "dpo mixed": _Case(
        {"type": "dpo", "beta": 0.1, "losses": ("sigmoid", "sft"), "loss_weights": (0.7, 0.3)},
        "DPO",
        {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]},
    ),
    "dpo precomputed": _Case(
        {"type": "dpo", "beta": 0.1, "precompute_reference": True},
        "DPO",
        {"beta": 0.1, "precompute_ref_log_probs": True},
    ),
    "orpo": _Case({"type": "orpo", "beta": 0.2}, "ORPO", {"beta": 0.2}),
    "kto": _Case(
        {"type": "kto", "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8},
        "KTO",
        {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8},
        "unpaired",
    ),
    "reward": _Case({"type": "reward"}, "Reward", {}),
    "grpo": _Case({"type": "grpo", "beta": 0.05, **_SAMPLED}, "GRPO", {"beta": 0.05, **_SAMPLING}, "prompts"),
    "rloo": _Case({"type": "rloo", "beta": 0.05, **_SAMPLED}, "RLOO", {"beta": 0.05, **_SAMPLING}, "prompts"),
}


@pytest.fixture(scope="module")
def prepared(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[_Case], tuple[TrainingPlan, Any, Any]]:
    """Plan, tokenizer and prepared rows of a case; rows of a kind are prepared once."""
    from finetune_trainer.data.prepare import load_data, prepare_data
    from finetune_trainer.model.load import load_tokenizer

    root = tmp_path_factory.mktemp("objectives")
    tokenizer: Any = None

    def prepare(case: _Case) -> tuple[TrainingPlan, Any, Any]:
        nonlocal tokenizer
        data = write_rows(case.rows, root / f"{case.rows}.jsonl")
        plan = make_plan(
            root,
            tiny_model,
            data,
            model={"chat_template": TEMPLATE},
            dataset={"validation_fraction": None},
            objective=case.objective,
            training={"epochs": None, "max_steps": 2},
        )
        tokenizer = tokenizer or load_tokenizer(plan, str(tiny_model))
        told = Recorder().event
        return plan, tokenizer, load_data(plan, prepare_data(plan, str(tiny_model), tokenizer, told), tokenizer, told)

    return prepare


def _train_plan(plan: TrainingPlan, tokenizer: Any, data: Any) -> Any:
    from finetune_trainer.model.adapter import prepare_method
    from finetune_trainer.model.load import load_model
    from finetune_trainer.objective.build import build_config, build_trainer
    from finetune_trainer.objective.parts import Parts

    config = build_config(plan, has_validation=False, resumed=False)
    model, adapter = prepare_method(plan, load_model(plan, plan.model.source.location, 0))
    trainer = build_trainer(config, Parts(plan, model, adapter, tokenizer, data, []))
    trainer.train()
    return trainer


def _train_plain(case: _Case, plan: TrainingPlan, tokenizer: Any, output: Path) -> Any:
    """The script that a person would write with TRL for the same thing, on its own data preparation."""
    import torch
    import trl
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed
    from trl.experimental import orpo

    library = orpo if case.trainer == "ORPO" else trl
    training, lora, location = plan.training, plan.method.lora, plan.model.source.location
    assert lora is not None
    set_seed(training.seed)
    if case.trainer == "Reward":
        model = AutoModelForSequenceClassification.from_pretrained(location, num_labels=1, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    rewards = {"reward_funcs": _rate} if case.rows == "prompts" else {}
    trainer = getattr(library, f"{case.trainer}Trainer")(
        model=model,
        processing_class=tokenizer,
        train_dataset=load_dataset(
            "json", data_files=plan.dataset.source.location, split="train", cache_dir=str(output / "cache")
        ),
        args=getattr(library, f"{case.trainer}Config")(
            output_dir=str(output),
            max_steps=training.max_steps,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.scheduler,
            warmup_steps=training.warmup_ratio,
            weight_decay=training.weight_decay,
            per_device_train_batch_size=training.per_device_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation,
            gradient_checkpointing=False,
            optim=training.optimizer,
            seed=training.seed,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **case.settings,
        ),
        peft_config=LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="SEQ_CLS" if case.trainer == "Reward" else "CAUSAL_LM",
        ),
        **rewards,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", _CASES)
def test_objective_equals_plain_trl(
    name: str, prepared: Callable[[_Case], tuple[TrainingPlan, Any, Any]], tmp_path: Path
) -> None:
    """Same seed and rows: loss and gradient norm of each step within 1e-6; where answers are sampled, their rewards too."""
    case = _CASES[name]
    plan, tokenizer, data = prepared(case)
    ours = _train_plan(plan, tokenizer, data)
    theirs = _train_plain(case, plan, tokenizer, tmp_path / "trl")
    compared = ("loss", "grad_norm", "reward") if case.rows == "prompts" else ("loss", "grad_norm")
    mine, plain = (
        [[entry[key] for key in compared] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (ours, theirs)
    )
    assert len(mine) == 2
    assert all(entry[1] > 1e-4 for entry in mine)
    for one, other in zip(mine, plain, strict=True):
        assert one == pytest.approx(other, abs=1e-6, rel=1e-6)
