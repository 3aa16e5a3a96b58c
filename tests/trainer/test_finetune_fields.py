"""Fields of a FineTuneJob all the way to the artifacts: written as YAML, decided, run by the real trainer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.trainer.plans import write_conversations

FINETUNE = [sys.executable, "-m", "finetune_operator.cli.main"]


def run(tmp_path: Path, tiny_model: Path, spec: dict[str, Any], **config_map: str) -> subprocess.CompletedProcess[str]:
    """``finetune run`` of a job whose data lies in a ConfigMap beside it."""
    base = {"model": {"source": f"file://{tiny_model}"}, "resources": {"gpu": {"count": 0}}}
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "fields"},
        "spec": base | spec,
    }
    rows = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows"}, "data": config_map}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump_all([rows, job]))
    command = [*FINETUNE, "run", str(file), "--output-dir", str(tmp_path / "run")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_data_training_and_evaluation(tmp_path: Path, tiny_model: Path) -> None:
    rows = write_conversations(tmp_path / "rows.jsonl").read_text()
    general = "".join(
        json.dumps({"text": f"The sum of {number} and one is {number + 1}."}) + "\n" for number in range(20)
    )
    spec = {
        "dataset": {
            "source": "configMap://rows/train.jsonl",
            "validation": {"fraction": 0.2},
            "cleaning": {"dedup": "minhash", "minLength": 4},
            "mixtures": [{"source": "configMap://rows/general.jsonl", "format": "text", "weight": 0.5}],
        },
        "method": {"type": "adalora", "rank": 4},
        "training": {
            "maxSteps": 30, "maxLength": 128, "packing": "bfd", "neftuneAlpha": 1, "loggingSteps": 1, "dataLoaderWorkers": 1,
            "globalBatchSize": 4, "earlyStopping": {"patience": 1, "minDelta": 5},
        },
        "checkpoint": {"keepBest": True, "everySteps": 2},
        "evaluation": {
            "everySteps": 2, "metrics": ["perplexity", "rouge"], "metricRows": 2, "gates": [{"metric": "loss", "op": "<", "value": 0.001}],
        },
        "output": {"artifacts": ["adapter", "merged"]},
    }  # fmt: skip
    done = run(tmp_path, tiny_model, spec, **{"train.jsonl": rows + rows, "general.jsonl": general})
    assert done.returncode == 13, done.stderr[-2000:]  # the gate can't hold; what was made is kept
    result = json.loads((tmp_path / "run" / "output" / "result.json").read_text())
    assert result["steps"] < 30
    assert {artifact["type"] for artifact in result["artifacts"]} == {"adapter", "merged"}
    assert {"loss", "perplexity", "rougeL"} <= result["evaluation"].keys()
    assert "evaluation.gates: loss is " in done.stderr + done.stdout
