"""Uploads by huggingface_hub's own client. The hub is a stand-in on this machine (``stand_in_hub``), as there is no network."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.plan import TrainingPlan
from finetune_trainer.__main__ import load_plan, run_plan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.export import hub as upload
from finetune_trainer.files import list_files
from tests.trainer.plans import make_plan, write_conversations
from tests.trainer.running import run
from tests.trainer.stand_in_hub import TOKEN, StandInHub

REPO = "acme/support-bot"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> TrainingPlan:
    """A run that has trained and exported, and is still to upload."""
    root = tmp_path_factory.mktemp("hub")
    plan = make_plan(
        root,
        tiny_model,
        write_conversations(root / "rows.jsonl"),
        output={"artifacts": ("adapter", "merged"), "hub": {"repo": REPO, "private": True}},
        training={"max_steps": 1, "epochs": None},
        evaluation={"gates": ({"metric": "loss", "op": ">", "value": 0.0},)},
    )
    run(plan)
    return plan


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    from huggingface_hub import constants

    server = StandInHub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("FINETUNE_TERMINATION_LOG", str(tmp_path / "termination"))
    # Read from the environment when the library is imported, which another test has done by now.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(upload, "_PAUSES", (0.0, 0.0))
    yield server
    server.shutdown()
    server.server_close()


def _result(plan: TrainingPlan) -> dict[str, object]:
    return json.loads((Path(plan.output.directory) / "result.json").read_text())


def test_failures_are_tried_again_and_what_is_there_is_not_sent_twice(
    finished: TrainingPlan, hub: StandInHub, tmp_path: Path
) -> None:
    hub.broken = 3
    assert run_plan(finished) == ExitCode.ERROR
    termination = json.loads((tmp_path / "termination").read_text())
    assert termination["reason"] == "TrainerError"
    assert f"output.pushToHub {REPO}: the upload failed: " in termination["message"]
    assert "running again only uploads them" in termination["message"]
    assert [record["type"] for record in termination["artifacts"]] == ["adapter", "merged"]
    assert hub.count("/api/repos/create") == 3 and not hub.repositories

    hub.broken = 1
    assert run_plan(finished) == ExitCode.OK
    assert hub.visibility == {REPO: "private"}
    output = Path(finished.output.directory)
    local = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for name in ("adapter", "merged")
        for path in list_files(output / name)
        if path.name != "README.md"
    }
    assert hub.repositories[REPO] == local
    assert {"adapter/adapter_model.safetensors", "merged/model.safetensors", "merged/config.json"} <= set(local)
    assert _result(finished)["pushedTo"] == f"{hub.address}/{REPO}"

    hub.requests.clear()
    assert run_plan(finished) == ExitCode.OK
    assert hub.requests == []

    # Killed between the upload and its record.
    result = {name: value for name, value in _result(finished).items() if name != "pushedTo"}
    (output / "result.json").write_text(json.dumps(result))
    assert run_plan(finished) == ExitCode.OK
    assert hub.count("PUT ") == 0 and hub.count("/commit/") == 0
    assert _result(finished)["pushedTo"] == f"{hub.address}/{REPO}"


def test_a_refusal_is_final_and_a_failed_gate_uploads_nothing(
    finished: TrainingPlan, hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(finished.output.directory)
    result = {name: value for name, value in _result(finished).items() if name != "pushedTo"}
    (output / "result.json").write_text(json.dumps(result))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert run_plan(finished) == ExitCode.ERROR
    assert hub.count("/api/repos/create") == 1
    assert "401" in json.loads((tmp_path / "termination").read_text())["message"]

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.requests.clear()
    gates = [{"metric": "loss", "op": "<", "bound": 0.0, "value": 1.0, "held": False}]
    (output / "result.json").write_text(json.dumps({**result, "gates": gates}))
    assert run_plan(finished) == ExitCode.GATE_FAILED
    assert hub.requests == []


def test_a_missing_token_is_told_before_training(
    finished: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "plan.json").write_text(finished.to_json())
    with pytest.raises(InvalidInputError, match=rf"output\.pushToHub {REPO}: there is no token .*tokenSecretRef"):
        load_plan(tmp_path / "plan.json")
