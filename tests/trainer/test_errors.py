"""What can't work ends with its exit code and a message that names the field, the value and the mend."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.__main__ import load_plan, main
from finetune_trainer.errors import CheckpointUnusableError, InvalidInputError, classify_error
from tests.trainer.plans import file_source, make_plan, write_conversations
from tests.trainer.running import Recorder, run


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    return make_plan(tmp_path, tmp_path / "model", tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"lora": None}}, "method.lora is missing, method.type lora needs it"),
        ({"method": {"type": "qlora"}}, "method.quantization is missing, method.type qlora needs it"),
        ({"method": {"type": "full", "lora": None}}, "output.artifacts has adapter, method.type full makes none"),
        ({"training": {"max_steps": 3}}, "exactly one of training.epochs and training.maxSteps"),
        ({"training": {"precision": "fp16"}}, "training.precision fp16 needs a GPU"),
    ],
)
def test_plans_that_contradict_themselves(plan: TrainingPlan, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(make_plan(tmp_path, tmp_path / "model", tmp_path / "data.jsonl", **change).to_json())
    with pytest.raises(InvalidInputError, match=message):
        load_plan(path)


def test_unreadable_plans_exit_10_with_a_termination_message(
    plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "termination"))
    document = json.loads(plan.to_json())
    document["training"]["seed"] = "seven"
    document["extra"] = 1
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert main(["--plan", str(tmp_path / "plan.json")]) == ExitCode.INVALID
    message = json.loads((tmp_path / "termination").read_text())["message"]
    assert "training.seed: Input should be a valid integer" in message and '(is "seven")' in message
    assert "extra: Extra inputs are not permitted (is 1)" in message
    assert main(["--plan", str(tmp_path / "none.json")]) == ExitCode.INVALID


class OutOfMemoryError(RuntimeError):
    """Stands for torch.OutOfMemoryError, which is recognised by its name: torch may not be loaded yet."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_names_the_three_mends_that_save_most(plan: TrainingPlan, error: BaseException) -> None:
    plan = plan.model_copy(
        update={
            "model": plan.model.model_copy(
                update={"source": ResolvedSource(uri="hf://acme/base-8B", kind="hf", location="acme/base-8B")}
            )
        }
    )
    code, message = classify_error(error, plan)
    assert code == ExitCode.OUT_OF_MEMORY
    assert message.startswith("the host ran out of memory, a process needs about ")
    mends = message.partition("; set ")[2].split("; or ")
    assert len(mends) == 3 and mends[0].startswith("method.type: qlora (now lora), which saves about 2")
    saved = [float(mend.split("about ")[1].split(" ")[0]) for mend in mends]
    assert saved == sorted(saved, reverse=True)
    halved = "training.perDeviceBatchSize: 1 (now 2) and training.gradientAccumulation: 4 (now 2), which saves about "
    assert any(mend.startswith(halved) for mend in mends)


def test_out_of_memory_with_a_model_of_unknown_size(plan: TrainingPlan) -> None:
    _, message = classify_error(MemoryError(), plan)
    assert message.startswith("the host ran out of memory; set training.perDeviceBatchSize: 1 (now 2) and ")
    assert "; or training.gradientCheckpointing: true (now false)" in message
    assert message.endswith(f"(what each saves is unknown for model.source {plan.model.source.uri})")


def test_out_of_memory_goes_by_the_model_in_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    _, message = classify_error(MemoryError(), make_plan(tmp_path, tiny_model, tmp_path / "data.jsonl"))
    assert "a process needs about 1.5 GiB" in message and "MiB" in message and "unknown" not in message


def test_torch_really_raises_what_counts_as_out_of_memory(plan: TrainingPlan) -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert classify_error(caught.value, plan)[0] == ExitCode.OUT_OF_MEMORY


def test_unforeseen_errors_are_counted(plan: TrainingPlan) -> None:
    assert classify_error(KeyError("x"), plan) == (ExitCode.ERROR, "KeyError: 'x'")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallelism": {"device": "cuda"}}, r"wants device cuda.*resources\.gpu\.count: 0"),
        ({"model": {"source": file_source(Path("/none"))}}, "model.source file:///none: /none does not exist"),
        ({"model": {"attention": "flash_attention_2"}}, "the model can't be loaded: .*[Ff]lash"),
        (
            {"method": {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ("qq_proj",)}}},
            "refused by TRL or PEFT: .*qq_proj",
        ),
        ({"training": {"optimizer": "adamx"}}, "refused by TRL or PEFT: .*adamx"),
        ({"training": {"max_length": 8}}, r"training\.maxLength 8 cuts off the whole response of all 15 rows"),
        ({"dataset": {"validation_fraction": 0.01}}, "leaves 15 for training and 0 for validation"),
    ],
)
def test_refused_before_training(make: Callable[..., TrainingPlan], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run(make(**changes))


def test_a_folder_without_a_model(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=r"neither a \.gguf file nor a model's folder"):
        run(make(model={"source": file_source(tmp_path / "empty")}))


def test_broken_rows_are_named_and_none_is_dropped(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "rows.jsonl", 4)
    lines = data.read_text().splitlines()
    lines[1] = "{"
    lines[3] = '{"messages": [{"role": "user", "content": "Q"}]}'
    data.write_text("\n".join(lines))
    with pytest.raises(InvalidInputError) as caught:
        run(make(data=data))
    assert "2 of 4 rows are broken: rows.jsonl row 2: is not JSON" in str(caught.value)
    assert "rows.jsonl row 4: field messages has no turn of the assistant" in str(caught.value)


def test_rows_cut_to_nothing_are_counted(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "rows.jsonl", 4)
    row = {"messages": [{"role": "user", "content": "long " * 200}, {"role": "assistant", "content": "A"}]}
    data.write_text(data.read_text() + json.dumps(row) + "\n")
    recorder = Recorder()
    run(make(data=data, training={"max_steps": 1, "epochs": None}), recorder)
    [warning] = recorder.messages("warning")
    assert warning.startswith("1 of 5 rows of file://")
    assert "training.maxLength 128 cuts off the whole response of them" in warning


def test_infinite_loss_ends_the_run_with_advice(make: Callable[..., TrainingPlan]) -> None:
    plan = make(training={"learning_rate": 1e30, "max_grad_norm": 0.0, "scheduler": "constant", "warmup_ratio": 0.0})
    with pytest.raises(
        InvalidInputError, match=r"(loss|grad norm) at step \d+ is (nan|inf): lower training\.learningRate"
    ):
        run(plan)


def test_checkpoints_of_another_training_are_not_resumed(make: Callable[..., TrainingPlan], tmp_path: Path) -> None:
    short = {"max_steps": 2, "epochs": None}
    run(make(training=short))
    kept = Path(make().checkpoint.directory) / "checkpoint-2"
    with pytest.raises(
        CheckpointUnusableError, match=r"checkpoint-2 was made with other model, dataset.*resume: never"
    ):
        run(make(training={**short, "seed": 8}))
    changed = write_conversations(tmp_path / "data.jsonl", 15)
    changed.write_text(changed.read_text().replace("It is", "That is"))
    with pytest.raises(CheckpointUnusableError, match="the dataset's content has changed"):
        run(make(data=changed, training=short))
    assert kept.exists()
    recorder = Recorder()
    result = run(make(training={**short, "seed": 8}, checkpoint={"resume": "never"}), recorder)
    assert result.resumes == 0 and not recorder.messages("resumed")


def test_checkpoints_of_another_run_are_passed_over(make: Callable[..., TrainingPlan]) -> None:
    short = {"max_steps": 3, "epochs": None}
    run(make(training=short, checkpoint={"every_steps": 3}))
    recorder = Recorder()
    plan = make(job={"run_id": "run-2"}, training=short)
    assert run(plan, recorder).resumes == 0
    assert "checkpoint checkpoint-3 belongs to another run, run-1; passed over" in recorder.messages("warning")
