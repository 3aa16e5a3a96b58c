"""A run that is killed goes on to the very bits of one that never stopped."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from tests.checkpoints import list_complete
from tests.trainer.conftest import Start, adapter_bytes, clear

STEPS = 9


def _checkpoints(plan: TrainingPlan) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in Path(plan.checkpoint.directory).glob("checkpoint-*"))


def _result(plan: TrainingPlan) -> dict[str, object]:
    return json.loads((Path(plan.output.directory) / "result.json").read_text())


@pytest.fixture
def uninterrupted(make: Callable[..., TrainingPlan], start: Start) -> Callable[[TrainingPlan], bytes]:
    """The adapter of ``plan`` from a process that nobody disturbs; forgets the run afterwards."""

    def run(plan: TrainingPlan) -> bytes:
        trainer = start(plan)
        assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
        adapter = adapter_bytes(plan)
        clear(plan)
        return adapter

    return run


def test_killed_at_every_step_in_turn(
    make: Callable[..., TrainingPlan], start: Start, uninterrupted: Callable[[TrainingPlan], bytes]
) -> None:
    """Each process dies one step behind the one before it: each step, epoch's end and the last too, is resumed from."""
    plan = make(checkpoint={"every_steps": 1})
    expected = uninterrupted(plan)
    for step in range(1, STEPS + 1):
        assert start(plan, kill_after_step=step).wait() == -signal.SIGKILL
        assert _checkpoints(plan) == list(range(max(1, step - 2), step))
    # The marker of the last step is missing: its checkpoint doesn't count.
    assert start(plan, kill_before_marker=STEPS).wait() == -signal.SIGKILL
    assert start(plan, kill_before_publish=True).wait() == -signal.SIGKILL
    last = start(plan)
    assert last.wait() == ExitCode.OK
    assert [event["step"] for event in last.events("resumed")] == [STEPS]
    assert adapter_bytes(plan) == expected
    # Once from each step: those that died before their first checkpoint left no trace to count.
    assert _result(plan)["resumes"] == STEPS
    assert not list(Path(plan.output.directory).glob(".export-*"))


def test_evaluations_and_epoch_checkpoints_leave_no_trace(
    make: Callable[..., TrainingPlan], start: Start, uninterrupted: Callable[[TrainingPlan], bytes]
) -> None:
    """Validation data, how often it is evaluated and when it is saved change nothing about the adapter."""
    plan = make(checkpoint={"every_steps": None}, evaluation={"every_steps": 2})
    expected = uninterrupted(make(checkpoint={"every_steps": 4}))
    assert start(plan, kill_after_step=4).wait() == -signal.SIGKILL
    assert _checkpoints(plan) == [3]
    trainer = start(plan)
    assert trainer.wait() == ExitCode.OK
    assert trainer.events("resumed")[0]["step"] == 3
    assert adapter_bytes(plan) == expected


def test_sigterm_finishes_the_step_and_exits_75(
    make: Callable[..., TrainingPlan], start: Start, uninterrupted: Callable[[TrainingPlan], bytes]
) -> None:
    plan = make(checkpoint={"every_steps": None})
    expected = uninterrupted(plan)
    trainer = start(plan, sigterm_after_step=1)
    assert trainer.wait() == ExitCode.PREEMPTED
    saved = trainer.termination["checkpointStep"]
    assert trainer.termination["reason"] == "Preempted"
    assert trainer.termination["step"] == saved
    assert saved in _checkpoints(plan)
    resumed = start(plan)
    assert resumed.wait() == ExitCode.OK
    assert resumed.events("resumed")[0]["step"] == saved
    assert adapter_bytes(plan) == expected


def test_sigterm_before_training_exits_75(make: Callable[..., TrainingPlan], start: Start) -> None:
    trainer = start(make(), sigterm_at_event="serving")
    assert trainer.wait() == ExitCode.PREEMPTED
    assert not trainer.events("progress")
    assert trainer.termination["checkpointStep"] is None


def test_broken_checkpoints_are_passed_over(
    make: Callable[..., TrainingPlan], start: Start, uninterrupted: Callable[[TrainingPlan], bytes]
) -> None:
    """A changed file, a missing file, a cut marker: each is passed over with a warning, down to the last good one."""
    plan = make(checkpoint={"every_steps": 1, "keep": 9})
    expected = uninterrupted(plan)
    assert start(plan, kill_after_step=6).wait() == -signal.SIGKILL
    folder = Path(plan.checkpoint.directory)
    optimizer = folder / "checkpoint-5" / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    (folder / "checkpoint-4" / "rng_state.pth").unlink()
    marker = folder / "checkpoint-3" / "finetune-checkpoint.json"
    marker.write_text(marker.read_text()[:100])
    trainer = start(plan)
    assert trainer.wait() == ExitCode.OK
    assert trainer.events("resumed")[0]["step"] == 2
    warnings = [event["message"] for event in trainer.events("warning")]
    assert len(warnings) == 3
    assert "checkpoint-5 has a changed file optimizer.pt" in warnings[0]
    assert "checkpoint-4 lacks the file rng_state.pth" in warnings[1]
    assert "checkpoint-3 has an unreadable marker" in warnings[2]
    assert adapter_bytes(plan) == expected


def test_a_finished_run_exits_at_once_and_a_spoilt_artifact_is_made_again(
    make: Callable[..., TrainingPlan], start: Start
) -> None:
    plan = make()
    assert start(plan).wait() == ExitCode.OK
    adapter = adapter_bytes(plan)
    again = start(plan)
    assert again.wait() == ExitCode.OK
    assert not again.events("serving")
    assert again.termination["reason"] == "Succeeded"
    (Path(plan.output.directory) / "adapter" / "adapter_model.safetensors").write_bytes(b"spoilt")
    third = start(plan)
    assert third.wait() == ExitCode.OK
    assert third.events("resumed")[0]["step"] == STEPS
    assert adapter_bytes(plan) == adapter


@pytest.mark.parametrize(
    ("method", "artifact", "weights"),
    [
        (
            {
                "type": "qlora",
                "quantization": {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "float32"},
            },
            "adapter",
            "adapter_model.safetensors",
        ),
        ({"type": "full", "lora": None}, "merged", "model.safetensors"),
    ],
    ids=["qlora", "full"],
)
def test_other_methods_resume_exactly(
    make: Callable[..., TrainingPlan], start: Start, method: dict[str, object], artifact: str, weights: str
) -> None:
    plan = make(method=method, output={"artifacts": (artifact,)})
    exported = Path(plan.output.directory) / artifact / weights
    assert start(plan).wait() == ExitCode.OK
    expected = exported.read_bytes()
    clear(plan)
    assert start(plan, kill_after_step=5).wait() == -signal.SIGKILL
    resumed = start(plan)
    assert resumed.wait() == ExitCode.OK
    assert resumed.events("resumed")[0]["step"] == 4
    assert exported.read_bytes() == expected


def test_checkpoints_by_the_minute_and_in_the_background(
    make: Callable[..., TrainingPlan], start: Start, uninterrupted: Callable[[TrainingPlan], bytes], tmp_path: Path
) -> None:
    """When and how it is saved changes nothing; what was on its way when the process died doesn't count."""
    expected = uninterrupted(make())
    checkpoint = {
        "every_steps": None,
        "every_minutes": 1e-4,
        "staging": str(tmp_path / "staging"),
        "asynchronous": True,
    }
    plan = make(checkpoint=checkpoint)
    assert start(plan, kill_after_step=6).wait() == -signal.SIGKILL
    newest = list_complete(Path(plan.checkpoint.directory))[-1]
    trainer = start(plan)
    assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
    assert trainer.events("resumed")[0]["step"] == newest
    assert adapter_bytes(plan) == expected
    assert _checkpoints(plan)[-1] == STEPS
    # The step that was reached and not saved had to be done again.
    assert _result(plan)["lostSteps"] == 5 - newest


def test_a_run_goes_on_from_another_runs_checkpoint(
    make: Callable[..., TrainingPlan], start: Start, uninterrupted: Callable[[TrainingPlan], bytes], tmp_path: Path
) -> None:
    """And then from its own; the other run's is left as it was. What doesn't fit is refused."""
    old = make(checkpoint={"every_steps": 2, "keep": 9})
    expected = uninterrupted(old)
    assert start(old, kill_after_step=6).wait() == -signal.SIGKILL
    origin = Path(old.checkpoint.directory) / "checkpoint-4"
    before = {path: path.read_bytes() for path in origin.iterdir()}
    own = {"every_steps": 2, "directory": str(tmp_path / "new"), "origin": str(origin)}
    new = make(job={"run_id": "22222222-2222-2222-2222-222222222222"}, checkpoint=own)
    first = start(new, kill_after_step=7)
    assert first.wait() == -signal.SIGKILL
    assert first.events("adopted")[0]["step"] == first.events("resumed")[0]["step"] == 4
    second = start(new)
    assert second.wait() == ExitCode.OK
    assert (second.events("adopted"), second.events("resumed")[0]["step"]) == ([], 6)
    assert adapter_bytes(new) == expected
    assert {path: path.read_bytes() for path in origin.iterdir()} == before

    def refuse(**sections: object) -> str:
        clear(new)
        trainer = start(make(job={"run_id": new.job.run_id}, checkpoint=own, **sections))
        assert trainer.wait() == ExitCode.CHECKPOINT_UNUSABLE
        return str(trainer.termination["message"])

    assert "was made with other model, dataset, method or training settings" in refuse(training={"learning_rate": 1e-5})
    (origin / "optimizer.pt").write_bytes(b"cut")
    assert refuse() == f"checkpoint.resume: {origin} has a changed file optimizer.pt"


def test_a_store_that_is_full_ends_the_run_and_keeps_what_is_there(
    make: Callable[..., TrainingPlan], start: Start, tmp_path: Path
) -> None:
    """Rather than training on without a net; what was saved before is whole, and the field that mends it is named."""
    checkpoint = {"every_steps": 2, "staging": str(tmp_path / "staging"), "asynchronous": True}
    plan = make(checkpoint=checkpoint)
    trainer = start(plan, full_from_step=4)
    assert trainer.wait() == ExitCode.ERROR
    message = trainer.termination["message"]
    assert "the checkpoint of step 4 can't be kept" in message and "No space left on device" in message
    assert "checkpoint.storage" in message
    again = start(plan)
    assert again.wait() == ExitCode.OK
    assert again.events("resumed")[0]["step"] == 2
