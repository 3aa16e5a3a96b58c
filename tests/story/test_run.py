"""``finetune run`` killed in the middle and run again ends with the adapter of a run that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.checkpoints import list_complete
from tests.trainer.plans import write_conversations

STEPS, SAVE_EVERY = 40, 5


@pytest.fixture
def job_file(tiny_model: Path, tmp_path: Path) -> Path:
    data = write_conversations(tmp_path / "train.jsonl")
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"source": f"file://{tiny_model}"},
            "dataset": {"source": "configMap://tiny-data/train.jsonl", "validation": {"fraction": 0.2}},
            "method": {"type": "lora", "rank": 4, "dropout": 0.1},
            "training": {"maxSteps": STEPS, "perDeviceBatchSize": 2, "maxLength": 64, "loggingSteps": 1},
            "checkpoint": {"everySteps": SAVE_EVERY},
            "resources": {"gpu": {"count": 0}},
            "observability": {"metricsPort": 18123},
        },
    }
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "tiny-data"},
        "data": {"train.jsonl": data.read_text()},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump_all([job, config_map]))
    return file


def start(file: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [Path(sys.executable).with_name("finetune"), "run", file, "--output-dir", output]
    with output.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def adapter(output: Path) -> bytes:
    return (output / "output" / "adapter" / "adapter_model.safetensors").read_bytes()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_and_run_again_ends_with_the_same_bits(job_file: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(job_file, undisturbed).wait(timeout=300) == 0, undisturbed.with_suffix(".log").read_text()[-3000:]

    process = start(job_file, killed)
    deadline = time.monotonic() + 300
    while not [step for step in list_complete(killed) if step >= 2 * SAVE_EVERY]:
        assert process.poll() is None, killed.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in (*children(process.pid), process.pid):  # the trainer too, as when the machine loses power
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "output" / "result.json").exists()
    saved = list_complete(killed)
    assert saved[-1] < STEPS

    assert start(job_file, killed).wait(timeout=300) == 0, killed.with_suffix(".log").read_text()[-3000:]
    log = killed.with_suffix(".log").read_text()
    print(f"killed after checkpoints {saved}")
    assert "resumed 1 time" in log
    assert adapter(killed) == adapter(undisturbed)

    # And a third time there is nothing left to do.
    began = time.monotonic()
    assert start(job_file, killed).wait(timeout=60) == 0
    print(f"a finished run is told from its result in {time.monotonic() - began:.1f} s")
    assert adapter(killed) == adapter(undisturbed)
