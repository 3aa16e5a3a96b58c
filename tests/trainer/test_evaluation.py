"""Figures before and after training, by the trainer's own metrics and by lm-eval on a task of one's own, and gates on them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import EarlyStoppingPlan, GatePlan, TrainingPlan
from finetune_api.progress import Result
from finetune_trainer.__main__ import load_plan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.evaluate.course import find_best_step, should_stop
from finetune_trainer.evaluate.gates import GateFailedError, decide_gates, require_gates
from finetune_trainer.evaluate.metrics import last_span
from tests.trainer.conftest import Start
from tests.trainer.plans import make_plan, write_conversations
from tests.trainer.running import Recorder, run

ALL = ("perplexity", "token-accuracy", "bleu", "rouge", "exact-match")
FULL: dict[str, Any] = {"type": "full", "lora": None}


def write_one_answer(path: Path, answer: str = "Yes, yes, indeed", count: int = 15) -> Path:
    """Conversations that all end in the same answer, which a tiny model learns in seconds."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is it {number}?"},
                {"role": "assistant", "content": answer},
            ]
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(folder: Path) -> Path:
    """A task of the harness: the answer that is learnt, against one that any model finds likelier, being shorter."""
    rows = [{"question": f"Is it {number}?"} for number in range(20, 26)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = folder / "affirm.yaml"
    task.write_text(
        f"""
task: affirm
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/asked.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "<|im_start|>user\\n{{{{question}}}}<|im_end|>\\n<|im_start|>assistant\\n"
doc_to_choice: ["Yes, yes, indeed", "No"]
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
    )
    return task


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[TrainingPlan, Result, Recorder]:
    root = tmp_path_factory.mktemp("evaluation")
    plan = make_plan(
        root,
        tiny_model,
        write_one_answer(root / "rows.jsonl"),
        method=FULL,
        training={"epochs": 14.0},
        checkpoint={"every_steps": 99},
        evaluation={
            "metrics": ALL,
            "harness": {"tasks": (f"file://{write_task(root)}",), "limit": 4, "fewshot": None},
            "gates": (
                {"metric": "exact-match", "op": ">=", "value": 0.9},
                {"metric": "harness/affirm/acc", "op": ">=", "versus_base": 0.5},
                {"metric": "loss", "op": "<", "versus_base": -1.0},
            ),
        },
        output={"artifacts": ("merged",)},
    )
    recorder = Recorder()
    return plan, run(plan, recorder), recorder


def test_figures_before_and_after(trained: tuple[TrainingPlan, Result, Recorder]) -> None:
    _, result, recorder = trained
    before, after = result.evaluation_before, result.evaluation
    assert set(after) == {
        *("loss", "perplexity", "token-accuracy", "bleu", "rouge1", "rouge2", "rougeL", "exact-match"),
        "harness/affirm/acc",
    }
    assert set(before) == set(after)
    assert after["loss"] == result.eval_loss and before["loss"] == result.eval_loss_before
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    assert before["exact-match"] == 0 and before["harness/affirm/acc"] == 0
    perfect = {"token-accuracy": 1.0, "rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "exact-match": 1.0}
    assert {name: after[name] for name in perfect} == perfect
    assert after["bleu"] == pytest.approx(100.0) and before["bleu"] < 20
    assert after["harness/affirm/acc"] == 1.0
    [told] = recorder.messages("evaluation")
    assert "exact-match 0 -> 1" in told


def test_gates_that_hold(trained: tuple[TrainingPlan, Result, Recorder]) -> None:
    _, result, _ = trained
    assert [gate.held for gate in result.gates] == [True, True, True]
    assert result.gates[2].bound == pytest.approx(result.evaluation_before["loss"] - 1.0)
    require_gates(result)


def test_the_base_model_is_asked_once(trained: tuple[TrainingPlan, Result, Recorder]) -> None:
    """A resumed run has the figures of the untrained model, without asking it again."""
    plan, result, _ = trained
    kept = json.loads((Path(plan.checkpoint.directory) / "evaluation-before.json").read_text())
    assert kept["answers"] == {
        name: value for name, value in result.evaluation_before.items() if name not in ("loss", "perplexity")
    }
    again = run(plan)
    assert again.resumes == 1
    assert again.evaluation_before == result.evaluation_before
    assert again.evaluation == result.evaluation


def test_a_failed_gate_is_told_with_value_and_bound(trained: tuple[TrainingPlan, Result, Recorder]) -> None:
    _, result, _ = trained
    gates = (
        GatePlan(metric="bleu", op="<", value=50.0),
        GatePlan(metric="exact-match", op=">=", value=1.0),
        GatePlan(metric="nothing", op=">", versus_base=0.0),
    )
    outcomes = decide_gates(gates, result.evaluation_before, result.evaluation)
    assert [outcome.held for outcome in outcomes] == [False, True, False]
    failed = result.model_copy(update={"gates": outcomes})
    with pytest.raises(GateFailedError) as caught:
        require_gates(failed)
    assert "bleu is 100, has to be < 50; nothing is no number, has to be > no number" in str(caught.value)


def test_exit_codes_of_gates(make: Callable[..., TrainingPlan], start: Start) -> None:
    """13 with the artifacts there when a gate fails, again when the pod is started once more; 0 when all hold."""
    gate = {"metric": "loss", "op": "<", "value": 0.5}
    short = {"training": {"max_steps": 2, "epochs": None}}
    failing = make(root="failing", **short, evaluation={"gates": (gate,)})
    trainer = start(failing)
    assert trainer.wait() == ExitCode.GATE_FAILED, trainer.log.read_text()[-2000:]
    assert trainer.termination["reason"] == "GateFailed"
    assert trainer.termination["message"].startswith("the trained model misses evaluation.gates: loss is ")
    assert "has to be < 0.5" in trainer.termination["message"]
    assert [record["type"] for record in trainer.termination["artifacts"]] == ["adapter"]
    result = Result.model_validate_json((Path(failing.output.directory) / "result.json").read_bytes())
    assert not result.gates[0].held and result.gates[0].value == result.eval_loss
    assert (Path(failing.output.directory) / "adapter" / "adapter_model.safetensors").exists()

    again = start(failing)
    assert again.wait() == ExitCode.GATE_FAILED
    assert not again.events("serving")
    assert again.termination["message"] == trainer.termination["message"]

    holding = make(root="holding", **short, evaluation={"gates": ({**gate, "op": ">"},)})
    held = start(holding)
    assert held.wait() == ExitCode.OK
    assert held.termination["reason"] == "Succeeded"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"gates": ({"metric": "blue", "op": ">", "value": 1},)}},
            r"metric blue is none of this run's: loss",
        ),
        (
            {"evaluation": {"gates": ({"metric": "rouge1", "op": ">", "value": 1},), "metrics": ("bleu",)}},
            r"metric rouge1 is none of this run's: loss, bleu; add it to evaluation\.metrics",
        ),
        (
            {"evaluation": {"harness": {"tasks": ("file:///none.yaml",)}}},
            r"evaluation\.harness\.tasks file:///none\.yaml",
        ),
        (
            {"evaluation": {"metrics": ("bleu",)}, "objective": {"response_only": False}},
            r"no validation row has a prompt and an answer to it: .*objective\.responseOnly: true",
        ),
        (
            {"training": {"early_stopping": {"metric": "eval_bleu", "patience": 1, "min_delta": 0.0}}},
            r"training\.earlyStopping\.metric eval_bleu is none of the evaluation's: use one of .*eval_loss",
        ),
    ],
)
def test_refused_before_training(make: Callable[..., TrainingPlan], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run(make(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"metrics": ("bleu",)}}, r"evaluation\.metrics need validation data: set dataset\.validation"),
        ({"checkpoint": {"keep_best": True}}, r"checkpoint\.keepBest need validation data"),
        (
            {"training": {"early_stopping": {"metric": "eval_loss", "patience": 1, "min_delta": 0.0}}},
            r"training\.earlyStopping need validation data",
        ),
        (
            {
                "objective": {"type": "dpo"},
                "evaluation": {"metrics": ("perplexity",)},
                "dataset": {"validation_fraction": 0.5},
            },
            r"perplexity needs a loss that is a cross-entropy, and that of objective\.type dpo is none",
        ),
        (
            {"objective": {"type": "reward"}, "evaluation": {"metrics": ("bleu",)}},
            r"objective\.type reward trains a score",
        ),
    ],
)
def test_plans_whose_evaluation_can_t_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    changes = {**changes, "dataset": {"validation_fraction": None, **changes.get("dataset", {})}}
    path = tmp_path / "plan.json"
    path.write_text(make_plan(tmp_path, tmp_path / "model", tmp_path / "data.jsonl", **changes).to_json())
    with pytest.raises(InvalidInputError, match=message):
        load_plan(path)


def _history(*losses: float, start: int = 0) -> list[dict[str, Any]]:
    return [{"eval_loss": loss, "step": start + number} for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "stops"),
    [
        ((3.0, 2.0, 2.5), 1, 0.0, True),
        ((3.0, 2.0, 2.5), 2, 0.0, False),
        ((3.0, 2.0, 2.5, 2.0), 2, 0.0, True),
        ((3.0, 2.0, 2.5, 1.9), 2, 0.0, False),
        ((3.0, 2.0, 1.95, 1.92), 2, 0.1, True),
        ((3.0, 3.5), 1, 0.0, True),
        ((), 1, 0.0, False),
    ],
)
def test_when_training_stops_early(losses: tuple[float, ...], patience: int, min_delta: float, stops: bool) -> None:
    """As transformers' EarlyStoppingCallback counts."""
    stopping = EarlyStoppingPlan(metric="eval_loss", patience=patience, min_delta=min_delta)
    assert should_stop(_history(*losses), stopping) is stops
    rising = EarlyStoppingPlan(metric="eval_reward", patience=patience, min_delta=min_delta)
    assert should_stop([{"eval_reward": -loss, "step": 1} for loss in losses], rising) is stops


def test_the_best_step_is_a_trained_one_with_a_loss() -> None:
    assert find_best_step(_history(0.5, 2.0, math.nan, 1.0, 1.0)) == 3
    assert find_best_step(_history(0.5)) is None


def test_the_last_supervised_span() -> None:
    assert last_span([-100, 5, 6, -100, 7, 8]) == (4, 6)
    assert last_span([-100, 5, -100]) == (1, 2)
    assert last_span([-100]) == (0, 0)


def test_early_end_and_best_checkpoint(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    """Learning one answer by heart soon makes others unlikely: the run ends there, and exports what was best."""
    write_conversations(tmp_path / "others.jsonl", 6)
    plan = make(
        data=write_one_answer(tmp_path / "one.jsonl"),
        dataset={
            "validation_fraction": None,
            "validation_source": {
                "uri": "file://others.jsonl",
                "kind": "file",
                "location": str(tmp_path / "others.jsonl"),
            },
        },
        training={
            "epochs": 20.0,
            "scheduler": "constant",
            "early_stopping": {"metric": "eval_loss", "patience": 3, "min_delta": 0.0},
        },
        evaluation={"every_steps": 1},
        checkpoint={"every_steps": 1000, "keep": 1, "keep_best": True},
    )
    recorder = Recorder()
    result = run(plan, recorder)
    folder = Path(plan.checkpoint.directory)
    assert result.best_step is not None and result.steps == result.best_step + 3 < 80
    [told] = recorder.messages("stopped-early")
    assert told.startswith(f"stopped early at step {result.steps} of 80: eval_loss has not improved")
    last = recorder.progresses[-1]
    assert (last.step, last.total_steps) == (result.steps, result.steps)
    kept = {int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")}
    assert kept == {result.best_step, result.steps}
    history = json.loads((folder / f"checkpoint-{result.steps}" / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert result.eval_loss == losses[result.best_step] == min(loss for step, loss in losses.items() if step)
    weights = "adapter_model.safetensors"
    exported = (Path(plan.output.directory) / "adapter" / weights).read_bytes()
    assert exported == (folder / f"checkpoint-{result.best_step}" / weights).read_bytes()
    assert exported != (folder / f"checkpoint-{result.steps}" / weights).read_bytes()

    # A run that was killed while it exported doesn't train on.
    again = run(plan)
    assert (again.steps, again.best_step, again.resumes) == (result.steps, result.best_step, 1)
    assert (Path(plan.output.directory) / "adapter" / weights).read_bytes() == exported
