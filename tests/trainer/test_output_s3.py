"""The output in S3, on a real server process: brought there, found there again on a machine that has nothing of it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_api.progress import Result
from finetune_trainer.export.delivery import DeliveryError, deliver_logs, fetch_artifacts, find_result
from finetune_trainer.files import hash_folder, list_files
from finetune_trainer.s3 import connect_s3
from tests.trainer.conftest import Start, adapter_bytes, begin, forget_machine
from tests.trainer.s3_server import BUCKET, S3Server

DESTINATION = f"s3://{BUCKET}/models/bot"


@pytest.fixture
def delivered(server: S3Server) -> Iterator[Path]:
    """What lies at the destination."""
    folder = server.folder / "models" / "bot"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_remote(make: Callable[..., TrainingPlan], tmp_path: Path) -> Callable[..., TrainingPlan]:
    """``make_remote(**changes)``: the small plan, nothing of which stays on the machine."""

    def build(**changes: Any) -> TrainingPlan:
        place = {"directory": f"{DESTINATION}/checkpoints/run-1", "staging": str(tmp_path / "staging")}
        output = {"destination": DESTINATION} | changes.pop("output", {})
        return make(checkpoint=place, output=output, **changes)

    return build


def read_result(folder: Path) -> Result:
    return Result.model_validate_json((folder / "result.json").read_bytes())


def test_the_artifacts_are_brought_there_and_a_finished_run_is_told_from_them(
    make: Callable[..., TrainingPlan],
    make_remote: Callable[..., TrainingPlan],
    start: Start,
    server: S3Server,
    delivered: Path,
) -> None:
    whole = make(root="whole")
    assert start(whole).wait() == ExitCode.OK
    # Of an earlier run.
    (delivered / "adapter").mkdir(parents=True)
    (delivered / "adapter" / "old.bin").write_bytes(b"old")
    plan = make_remote(output={"artifacts": ("adapter", "merged")})
    trainer = begin(start, plan, server)
    assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
    assert [event["message"] for event in trainer.events("delivered")] == [f"the artifacts are in {DESTINATION}"]
    result = read_result(delivered)
    assert result.delivered_to == DESTINATION
    assert {each.type: each.sha256 for each in result.artifacts} == {
        name: hash_folder(delivered / name) for name in ("adapter", "merged")
    }
    assert (delivered / "adapter" / "adapter_model.safetensors").read_bytes() == adapter_bytes(whole)

    forget_machine(plan)
    again = begin(start, plan, server)
    assert again.wait() == ExitCode.OK
    assert again.events("done")[0]["message"] == f"the run is finished already: {DESTINATION}/result.json"
    assert not again.events("serving")
    assert read_result(Path(plan.output.directory)) == result

    (delivered / "adapter" / "adapter_config.json").unlink()
    forget_machine(plan)
    mended = begin(start, plan, server)
    assert mended.wait() == ExitCode.OK
    assert mended.events("resumed")
    assert hash_folder(delivered / "adapter") == result.artifacts[0].sha256


def test_ended_between_the_artifacts_and_the_result_it_brings_them_again(
    make_remote: Callable[..., TrainingPlan], start: Start, server: S3Server, delivered: Path
) -> None:
    plan = make_remote()
    assert begin(start, plan, server, sigterm_at_event="delivered").wait() == ExitCode.PREEMPTED
    brought = hash_folder(delivered / "adapter")
    assert not (delivered / "result.json").exists()
    forget_machine(plan)
    trainer = begin(start, plan, server)
    assert trainer.wait() == ExitCode.OK, trainer.log.read_text()
    assert trainer.events("resumed")[0]["step"] == 9
    assert read_result(delivered).artifacts[0].sha256 == hash_folder(delivered / "adapter") == brought


def test_what_the_server_refuses_is_told_before_anything_is_loaded(
    make_remote: Callable[..., TrainingPlan], start: Start, server: S3Server, delivered: Path
) -> None:
    wrong = server.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    elsewhere = f"s3://nobodys-bucket/{BUCKET}"
    for plan, environment in (
        (make_remote(), wrong),
        (make_remote(output={"destination": elsewhere}), server.environment),
    ):
        trainer = start(plan, environment=environment)
        assert trainer.wait() == ExitCode.INVALID, trainer.log.read_text()
        message = trainer.termination["message"]
        assert message.startswith(f"output.destination {plan.output.destination}: "), message
        assert "AWS_SECRET_ACCESS_KEY" in message and "wrong" not in message
        assert not trainer.events("serving")


def test_trying_the_destination_leaves_nothing_there(
    make_remote: Callable[..., TrainingPlan], opened: None, delivered: Path
) -> None:
    assert find_result(make_remote(), is_main=True) is None
    assert not delivered.exists() or not list_files(delivered)


def test_what_an_upload_to_a_hub_needs_is_fetched_and_checked(
    make_remote: Callable[..., TrainingPlan],
    start: Start,
    server: S3Server,
    delivered: Path,
    opened: None,
) -> None:
    plan = make_remote()
    assert begin(start, plan, server).wait() == ExitCode.OK
    whole = adapter_bytes(plan)
    forget_machine(plan)
    fetch_artifacts(plan, read_result(delivered))
    assert adapter_bytes(plan) == whole

    forget_machine(plan)
    with connect_s3().open_output_stream(f"{BUCKET}/models/bot/adapter/tokenizer_config.json") as file:
        file.write(b"{}")
    with pytest.raises(DeliveryError, match=f"{DESTINATION}/adapter is no longer what was brought there"):
        fetch_artifacts(plan, read_result(delivered))


def test_the_logs_of_each_process_are_there_however_it_ended(
    make_remote: Callable[..., TrainingPlan], start: Start, server: S3Server, delivered: Path
) -> None:
    plan = make_remote(observability={"trackers": ("tensorboard",)})
    environment = {"TENSORBOARD_LOGGING_DIR": str(Path(plan.output.directory) / "tensorboard")}
    for fault, code in (({"sigterm_after_step": 2}, ExitCode.PREEMPTED), ({}, ExitCode.OK)):
        trainer = start(plan, environment=server.environment | environment, **fault)
        assert trainer.wait() == code, trainer.log.read_text()
        forget_machine(plan)
    assert len(list(delivered.glob("tensorboard/**/events.out.tfevents.*"))) == 2


def test_logs_are_not_worth_a_failure(
    make_remote: Callable[..., TrainingPlan], opened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    plan = make_remote()
    folder = Path(plan.output.directory) / "tensorboard"
    folder.mkdir(parents=True)
    (folder / "events").write_text("")
    warnings: list[str] = []
    deliver_logs(plan, warnings.append)
    assert len(warnings) == 1 and f"can't be brought to {DESTINATION}" in warnings[0]
