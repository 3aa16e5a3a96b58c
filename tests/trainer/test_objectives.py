"""Each objective learns, is evaluated, and goes on from a checkpoint to the very bits of a run that never stopped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.objectives import OBJECTIVES, ObjectiveType
from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from tests.trainer.conftest import adapter_bytes
from tests.trainer.matrix.plans import write_rows
from tests.trainer.plans import file_source
from tests.trainer.running import run

_SAMPLED = {
    "reward_functions": (f"{__name__}:count_vowels",),
    "generation": {"completions": 4, "max_tokens": 8},
}
_SETTINGS: dict[ObjectiveType, dict[str, Any]] = {
    "dpo": {"beta": 0.1},
    "orpo": {"beta": 0.1},
    "kto": {"beta": 0.1},
    "reward": {},
    "grpo": {"beta": 0.01, **_SAMPLED},
    "rloo": {"beta": 0.01, **_SAMPLED},
}


def count_vowels(completions: list[str], **_: Any) -> list[float]:
    """The share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


@pytest.fixture
def plan_for(make: Callable[..., TrainingPlan], tmp_path: Path) -> Callable[..., TrainingPlan]:
    """``plan_for(objective, **changes)``: 2 epochs of 4 steps over 16 or 4 rows, 2 rows for validation."""

    def build(objective: ObjectiveType, /, **changes: Any) -> TrainingPlan:
        rows = OBJECTIVES[objective].rows
        # Of a prompt that is answered as a group, each answer counts in the batch of 4.
        count = 6 if rows == "prompts" else 18
        data = write_rows(rows, tmp_path / f"{objective}.jsonl", count)
        sections: dict[str, Any] = {
            "objective": {"type": objective, **_SETTINGS[objective]},
            "dataset": {"validation_fraction": 2 / count},
            "training": {"epochs": 2.0, "learning_rate": 2e-2, "scheduler": "constant"},
            "checkpoint": {"every_steps": 5, "keep": 9},
            "evaluation": {"samples": ("What is 1 plus 1?",), "sample_tokens": 4},
        }
        for name, change in changes.items():
            sections[name] = {**sections.get(name, {}), **change}
        return make(root=objective, data=data, **sections)

    return build


def _history(plan: TrainingPlan, step: int) -> list[dict[str, Any]]:
    folder = Path(plan.checkpoint.directory) / f"checkpoint-{step}"
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("objective", _SETTINGS)
def test_learns_and_resumes_exactly(objective: ObjectiveType, plan_for: Callable[..., TrainingPlan]) -> None:
    """The checkpoint stands in the second epoch: the order of its rows and its answers' randomness have to go on."""
    plan = plan_for(objective)
    result = run(plan)
    adapter, history = adapter_bytes(plan), _history(plan, 8)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == result.steps == 8
    assert result.tokens_seen > 0
    assert result.eval_loss_before is not None
    assert result.eval_loss is not None
    assert len(result.samples) == (0 if objective == "reward" else 1)
    if OBJECTIVES[objective].rows == "prompts":
        assert all("eval_reward" in entry for entry in history if "eval_loss" in entry)
    else:
        assert losses[-1] < losses[0]
        assert result.eval_loss != result.eval_loss_before
    marker = json.loads((Path(plan.checkpoint.directory) / "checkpoint-5" / "finetune-checkpoint.json").read_text())
    assert marker["samplesConsumed"] == (5 if OBJECTIVES[objective].rows == "prompts" else 20)

    shutil.rmtree(Path(plan.checkpoint.directory) / "checkpoint-8")
    shutil.rmtree(plan.output.directory)
    resumed = run(plan)
    assert resumed.resumes == 1
    assert [entry["loss"] for entry in _history(plan, 8) if "loss" in entry] == losses
    assert adapter_bytes(plan) == adapter
    assert resumed.tokens_seen == result.tokens_seen


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_reference_of_its_own(objective: ObjectiveType, plan_for: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    """Another model as the reference moves the losses; the model itself, loaded or precomputed, doesn't."""
    import torch
    from transformers import AutoModelForCausalLM

    quick: dict[str, Any] = {
        "training": {"epochs": None, "max_steps": 2},
        "dataset": {"validation_fraction": None},
        "checkpoint": {"every_steps": 2, "resume": "never"},
        "evaluation": {"samples": ()},
    }
    same = file_source(Path(plan_for(objective).model.source.location))
    other = tmp_path / "other"
    shutil.copytree(same.location, other)
    model = AutoModelForCausalLM.from_pretrained(same.location)
    with torch.no_grad():
        model.lm_head.weight *= 3.0
    model.save_pretrained(other)

    def losses(**settings: Any) -> list[float]:
        plan = plan_for(objective, objective=settings, **quick)
        run(plan)
        return [entry["loss"] for entry in _history(plan, 2) if "loss" in entry]

    expected = losses()
    assert losses(reference_model=same) == pytest.approx(expected, abs=1e-6)
    assert losses(precompute_reference=True) == pytest.approx(expected, abs=1e-6)
    assert losses(reference_model=file_source(other)) != pytest.approx(expected, abs=1e-3)


def test_a_trained_reward_model_rewards(plan_for: Callable[..., TrainingPlan]) -> None:
    """What objective reward exports scores the answers of grpo, at the token where it was trained to be read."""
    from transformers import AutoTokenizer

    from finetune_trainer.objective.rewards import load_rewards

    judge = plan_for("reward", output={"artifacts": ("merged",)}, evaluation={"samples": ()})
    run(judge)
    merged = file_source(Path(judge.output.directory) / "merged")
    plan = plan_for(
        "grpo",
        objective={"reward_model": merged, "reward_functions": ("length-penalty",)},
        training={"epochs": None, "max_steps": 1},
        checkpoint={"every_steps": 1},
        dataset={"validation_fraction": None},
        evaluation={"samples": ()},
    )
    run(plan)
    logged = next(entry for entry in _history(plan, 1) if "reward" in entry)
    both = logged["rewards/reward_model/mean"] + logged["rewards/penalise_length/mean"]
    assert logged["reward"] == pytest.approx(both, abs=1e-5)

    row = json.loads(Path(judge.dataset.source.location).read_text().splitlines()[0])
    prompt = AutoTokenizer.from_pretrained(merged.location).apply_chat_template(
        row["prompt"], tokenize=False, add_generation_prompt=True
    )
    score = load_rewards(plan)[-1]
    good, bad = score(prompts=[prompt] * 2, completions=[row[side][0]["content"] for side in ("chosen", "rejected")])
    assert good is not None
    assert bad is not None
    assert good > bad


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("dpo", {"objective": {"losses": ("exo_pair",)}}, r"objective\.losses: exo_pair .*labelSmoothing \(is 0\)"),
        (
            "kto",
            {"training": {"per_device_batch_size": 1}},
            r"training\.perDeviceBatchSize 1: kto .* set it to 2 or more",
        ),
        (
            "grpo",
            {"objective": {"reward_functions": ("exact",)}},
            r"rewardFunctions: there is no exact; there are exact-match",
        ),
        (
            "grpo",
            {"objective": {"reward_functions": ("none:at_all",)}},
            r"rewardFunctions none:at_all: No module named",
        ),
        ("rloo", {"objective": {"reward_functions": ("number-match",)}}, r"number-match: compares .* no row has one"),
        ("grpo", {"training": {"gradient_accumulation": 32}}, r"4 rows for training, and a step answers 16 prompts"),
    ],
)
def test_refusals_name_the_mend(
    objective: ObjectiveType, changes: dict[str, Any], message: str, plan_for: Callable[..., TrainingPlan]
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run(plan_for(objective, evaluation={"samples": ()}, **changes))


def test_models_beside_have_to_fit(plan_for: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"evaluation": {"samples": ()}}
    causal = file_source(Path(plan_for("dpo").model.source.location))
    with pytest.raises(
        InvalidInputError, match=r"objective\.rewardModel file://.*LlamaForCausalLM with 2 labels: train one"
    ):
        run(plan_for("grpo", objective={"reward_model": causal}, **quiet))
    with pytest.raises(InvalidInputError, match=r"objective\.referenceModel file://.*does not exist"):
        run(plan_for("dpo", objective={"reference_model": file_source(tmp_path / "nowhere")}, **quiet))


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_rewards_rise(objective: ObjectiveType, plan_for: Callable[..., TrainingPlan]) -> None:
    """From the share of vowels in random answers to vowels alone."""
    sampled = {"beta": 0.0, "generation": {"completions": 8, "max_tokens": 6}}
    plan = plan_for(
        objective,
        method={"type": "full", "lora": None},
        objective=sampled,
        dataset={"validation_fraction": None},
        training={
            "epochs": None,
            "max_steps": 20,
            "learning_rate": 3e-2,
            "warmup_ratio": 0.0,
            "per_device_batch_size": 16,
            "gradient_accumulation": 1,
        },
        checkpoint={"every_steps": 20},
        output={"artifacts": ("merged",)},
        evaluation={"samples": ()},
    )
    run(plan)
    rewards = [entry["reward"] for entry in _history(plan, 20) if "reward" in entry]
    assert rewards[0] < 0.3
    assert rewards[-1] > 0.6
