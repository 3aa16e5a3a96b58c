"""PPO on bandits, whose optimum is known: one prompt, an answer of one word, a reward for the word."""

import json
import shutil
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from tests.trainer.conftest import adapter_bytes
from tests.trainer.plans import file_source, make_plan
from tests.trainer.running import Recorder, run

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

    def build(reward: str, root: str = "run", rows: int = 8, **changes: Any) -> TrainingPlan:
        data = tmp_path / "prompts.jsonl"
        data.write_text(f"{json.dumps({'prompt': PROMPT})}\n" * rows)
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


def test_the_divergence_from_the_reference_is_paid_for(bandit: Callable[..., TrainingPlan]) -> None:
    """max E[r] - beta KL(pi || pi_ref) is known: pi(a) is proportional to pi_ref(a) exp(r(a) / beta)."""
    plan = bandit(
        "reward_worth",
        objective={"beta": 0.5, "ppo": {"whiten_advantages": False, "value_coefficient": 1.0}},
        training={"max_steps": 80, "learning_rate": 7e-3, "scheduler": "cosine", "per_device_batch_size": 128},
    )
    run(plan)
    reference, found = probabilities(plan, None), probabilities(plan, "adapter")
    tilted = {word: p * exp(WORTH.get(word, 0.0) / 0.5) for word, p in reference.items()}
    optimum = {word: p / sum(tilted.values()) for word, p in tilted.items()}
    for word in optimum:
        print(f"{word:6} reference {reference[word]:.3f} optimum {optimum[word]:.3f} found {found[word]:.3f}")
    assert max(abs(optimum[word] - found[word]) for word in optimum) < 0.05
    # The reference itself is far off, and the reward alone would have made it all gold.
    assert max(abs(optimum[word] - reference[word]) for word in optimum) > 0.2
    # In the last steps the mean of log(pi / pi_ref) is the divergence of the optimum.
    divergence = sum(p * log(p / reference[word]) for word, p in optimum.items())
    assert mean(entry["kl"] for entry in history(plan)[-20:]) == pytest.approx(divergence, abs=0.1)


def test_a_large_beta_stays_near_the_reference(bandit: Callable[..., TrainingPlan]) -> None:
    plan = bandit("reward_gold", objective={"beta": 20.0}, training={"max_steps": 40})
    run(plan)
    reference, found = probabilities(plan, None), probabilities(plan, "adapter")
    assert max(abs(reference[word] - found[word]) for word in reference) < 0.1


def test_what_is_logged(bandit: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    """The first pass over answers of one word: the ratios are 1 and the values 0, so all can be worked out."""
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text('{"prompt": "one"}\n{"prompt": "pick"}\n')
    plan = bandit(
        "reward_gold",
        rows=6,
        dataset={"validation_fraction": None, "validation_source": file_source(held_out)},
        objective={"ppo": {"epochs": 2}},
        training={"max_steps": 4, "learning_rate": 1e-9},
    )
    recorder = Recorder()
    result = run(plan, recorder)
    first, second, third, _ = history(plan)
    # Whitened advantages have mean 0; half the squared error of a value of 0 is half the share of 1s.
    assert first["policy_loss"] == pytest.approx(0.0, abs=1e-6)
    assert first["value_loss"] == pytest.approx(first["reward"] / 2)
    assert first["loss"] == pytest.approx(0.1 * first["value_loss"], abs=1e-6)
    assert (first["clip_fraction"], first["kl"], first["answer_length"]) == (0.0, 0.0, 1.0)
    policy = probabilities(plan, None).values()
    assert first["entropy"] == pytest.approx(-sum(p * log(p) for p in policy), abs=1e-4)
    # The second pass is over the same answers, the third one over new ones.
    assert second["reward"] == first["reward"]
    assert third["learning_rate"] == 1e-9
    # 6 prompts answered 4 times make less than a batch of 32: it is filled up with the first ones.
    assert (result.steps, result.epochs) == (4, 2.0)
    assert result.eval_loss == result.eval_loss_before
    assert recorder.progresses[-1].loss is not None


def test_equal_seeds_and_micro_batches_give_equal_runs(bandit: Callable[..., TrainingPlan]) -> None:
    """Bit for bit with the same batches, by rounding where the batch is cut into four."""
    longer = {"generation": {"completions": 4, "max_tokens": 5}, "beta": 0.1}
    runs = []
    for root, batch, accumulation, seed in [
        ("one", 32, 1, 7),
        ("same", 32, 1, 7),
        ("cut", 8, 4, 7),
        ("other", 32, 1, 8),
    ]:
        training = {"per_device_batch_size": batch, "gradient_accumulation": accumulation, "seed": seed, "max_steps": 6}
        plan = bandit("count_gold", root=root, objective=longer, training=training)
        run(plan)
        runs.append((adapter_bytes(plan), [(entry["loss"], entry["reward"], entry["kl"]) for entry in history(plan)]))
    one, same, cut, other = runs
    assert one == same
    assert cut[1] == [pytest.approx(entry, abs=1e-5) for entry in one[1]]
    assert one[1] != other[1]


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_resumed_to_the_same_bits(bandit: Callable[..., TrainingPlan], method: dict[str, Any]) -> None:
    """From between two passes over a batch, whose answers are in the checkpoint, and from where an epoch begins."""
    from safetensors.torch import load_file

    artifact, weights = ("merged", "model.safetensors") if method is FULL else ("adapter", "adapter_model.safetensors")
    plan = bandit(
        "count_gold",
        method=method,
        objective={"generation": {"completions": 16, "max_tokens": 4}, "beta": 0.1, "ppo": {"epochs": 2}},
        # 8 prompts, 2 of them a batch: an epoch has 4 batches of 2 passes.
        training={"max_steps": 10, "learning_rate": 3e-3},
        checkpoint={"every_steps": 1, "keep": 20},
        output={"artifacts": (artifact,)},
    )
    exported = Path(plan.output.directory) / artifact / weights
    run(plan)
    expected = exported.read_bytes()
    assert not any("value_head" in name for name in load_file(exported))
    for step in (9, 8, 3):
        assert (Path(plan.checkpoint.directory) / f"checkpoint-{step}" / "answers-0.pt").exists() == (step % 2 == 1)
        for path in Path(plan.checkpoint.directory).glob("checkpoint-*"):
            if int(path.name.split("-")[1]) > step:
                shutil.rmtree(path)
        shutil.rmtree(plan.output.directory)
        assert run(plan).resumes > 0
        assert exported.read_bytes() == expected, step


def test_no_number_ends_the_run(bandit: Callable[..., TrainingPlan]) -> None:
    """At once, though it is logged every tenth step only: the weights are spoilt, and can't answer any more."""
    plan = bandit("reward_nothing_real", training={"logging_steps": 10})
    with pytest.raises(InvalidInputError, match=r"the loss at step 1 is nan"):
        run(plan)


def test_groups_have_to_fill_a_step(bandit: Callable[..., TrainingPlan]) -> None:
    plan = bandit("reward_gold", objective={"generation": {"completions": 5}})
    with pytest.raises(InvalidInputError, match=r"objective.generation.completions 5 does not divide the 32 answers"):
        run(plan)
