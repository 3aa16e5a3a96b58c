"""`finetune run` with the real trainer: signals, exit statuses, going on after an end, and the summary."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.trainer.plans import write_conversations


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path) -> list[str]:
    """The command for a job whose data lies in a ConfigMap of the same file, and whose model in a claim."""
    rows = write_conversations(tmp_path / "rows.jsonl").read_text()
    objects = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sums"}, "data": {"train.jsonl": rows}},
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "tiny"},
            "spec": {
                "model": {"source": f"pvc://models/{tiny_model.name}"},
                "dataset": {"source": "configMap://sums/train.jsonl"},
                "resources": {"gpu": {"count": 0}},
                "training": {"maxSteps": 30, "loggingSteps": 1, "maxLength": 128},
                "checkpoint": {"everySteps": 5},
                "output": {"verify": False},
            },
        },
    ]
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    program = [sys.executable, "-m", "finetune_operator.cli.main", "run", str(file)]
    return [*program, "--output-dir", str(tmp_path / "run"), "--claim", f"models={tiny_model.parent}"]


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream)


def _wait_for_step(process: subprocess.Popen[bytes], log: Path, step: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        steps = [json.loads(line).get("step", 0) for line in log.read_text().splitlines() if line.endswith("}")]
        if max(steps, default=0) >= step:
            return
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.05)
    pytest.fail(f"step {step} is not reached: {log.read_text()[-2000:]}")


def test_killed_and_stopped_runs_go_on(command: list[str], tmp_path: Path) -> None:
    # SIGKILL leaves the command no time to do anything: the trainer notices, saves and ends by itself.
    first = _start(command, tmp_path / "first.log")
    _wait_for_step(first, tmp_path / "first.log", 6)
    first.kill()
    first.wait()
    second = _start(command, tmp_path / "second.log")
    _wait_for_step(second, tmp_path / "second.log", 14)
    second.send_signal(signal.SIGINT)
    assert second.wait(120) == 75
    assert "goes on from the last checkpoint" in (tmp_path / "second.log").read_text()

    third = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tiny: 30 steps" in third.stdout
    assert "resumed 2 times" in third.stdout
    assert str(tmp_path / "run/output/adapter") in third.stdout
    assert "\x1b" not in third.stdout

    # Nothing is left to do.
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == third.stdout


def test_trainer_s_status_is_the_command_s(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        file.read_text()
        .replace("What is", "nobody reads")
        .replace('\\"messages\\"', '\\"nonsense\\"')
        .replace('"messages"', '"nonsense"')
    )
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"FINETUNE_LOG_FORMAT": "json"}
    )
    assert done.returncode == 10
    assert done.stdout == ""
