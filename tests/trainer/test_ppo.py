"""PPO on bandits, whose optimum is known: one prompt, an answer of one word, a reward for the word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import TrainingPlan
from tests.trainer.plans import make_plan
from tests.trainer.running import run

WORDS = ("red", "green", "blue", "white", "black", "pink", "grey", "gold")
PROMPT = "pick one"
WORTH = {"gold": 1.0, "red": 0.5, "pink": -0.5}
LORA = {"type": "lora", "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.1, "target_modules": ("all-linear",)}}
FULL = {"type": "full", "lora": None}


def reward_gold(completions: list[str], **_: Any) -> list[float | None]:
    return [float(answer == "gold") for answer in completions]


def reward_worth(completions: list[str], **_: Any) -> list[float | None]:
    return [WORTH.get(answer) for answer in completions]


def count_gold(completions: list[str], **_: Any) -> list[float | None]:
    """Of longer answers."""
    return [float(answer.split().count("gold")) for answer in completions]


def reward_nothing_real(completions: list[str], **_: Any) -> list[float | None]:
    return [float("nan")] * len(completions)


@pytest.fixture(scope="module")
def bandit_model(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer Llama that speaks eleven words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ("<end>", "pick", "one", *WORDS)
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("bandit-model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bandit(bandit_model: Path, tmp_path: Path) -> Callable[..., TrainingPlan]:
    """``bandit(reward, **changes)``: a plan of 32 answers a step; a dict in ``changes`` is laid over its section."""

    def build(reward: str, root: str = "run", **changes: Any) -> TrainingPlan:
        data = tmp_path / "prompts.jsonl"
        data.write_text(f"{json.dumps({'prompt': PROMPT})}\n" * 8)
        objective = {
            "type": "ppo",
            "response_only": False,
            "beta": 0.0,
            "reward_functions": (f"tests.trainer.test_ppo:{reward}",),
            "generation": {"completions": 4, "max_tokens": 1},
            "ppo": {},
        }
        training = {
            "epochs": None,
            "max_steps": 80,
            "learning_rate": 1e-2,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "per_device_batch_size": 32,
            "gradient_accumulation": 1,
            "logging_steps": 1,
        }
        return make_plan(
            tmp_path / root,
            bandit_model,
            data,
            **{
                "method": LORA,
                "dataset": {"validation_fraction": None},
                "checkpoint": {"every_steps": 1000},
                **changes,
                "objective": objective | changes.get("objective", {}),
                "training": training | changes.get("training", {}),
            },
        )

    return build


def probabilities(plan: TrainingPlan, artifact: str | None) -> dict[str, float]:
    """Of the answers to the prompt, by plain transformers and PEFT: the base's, or an exported artifact's."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, folder = plan.model.source.location, Path(plan.output.directory) / str(artifact)
    model = AutoModelForCausalLM.from_pretrained(folder if artifact == "merged" else base)
    if artifact == "adapter":
        model = PeftModel.from_pretrained(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        logits = model.eval()(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1]
    return dict(zip(tokenizer.convert_ids_to_tokens(range(len(logits))), logits.softmax(0).tolist(), strict=True))


def history(plan: TrainingPlan) -> list[dict[str, Any]]:
    """What was logged of the steps, out of the last checkpoint."""
    newest = max(Path(plan.checkpoint.directory).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


def test_a_bandit_is_solved(bandit: Callable[..., TrainingPlan]) -> None:
    plan = bandit("reward_gold", output={"artifacts": ("adapter", "merged"), "verify": False})
    run(plan)
    before = probabilities(plan, None)["gold"]
    after = [probabilities(plan, name)["gold"] for name in ("adapter", "merged")]
    print(f"gold: {before:.3f} before, {after} after")
    assert before < 0.5
    assert min(after) >= 0.9
