"""``finetune recommend`` and ``finetune estimate`` as a person meets them."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from finetune_api.memory import Estimate
from finetune_operator.cli.errors import CommandError, UsageError
from finetune_operator.cli.main import app
from finetune_operator.spec.parse import parse_finetunejob

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: support-bot}
spec:
  model: {source: SOURCE}
  dataset: {source: pvc://data/train.jsonl}
"""


def finetune(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("gpus", ["1", "4"])
@pytest.mark.parametrize("task", ["chat", "code", "classification", "reasoning"])
def test_the_recommended_job_is_valid_and_needs_what_was_told(tmp_path: Path, task: str, gpus: str) -> None:
    arguments = ("recommend", "--model", "hf://Qwen/Qwen3-8B", "--gpu-memory", "24", "--gpus", gpus, "--task", task)
    told = finetune(*arguments)
    table, _, text = told.stdout.partition("---\n")
    assert "method.rank" in table and "of 24 GiB a GPU by the estimate" in table and "total" in table
    job = parse_finetunejob(yaml.safe_load(text))
    assert job.spec.resources.gpu.count == int(gpus) and job.metadata.name == "tune-qwen3-8b"
    assert parse_finetunejob(yaml.safe_load(finetune(*arguments, "-o", "yaml").stdout)) == job
    file = tmp_path / "job.yaml"
    file.write_text(text)
    needed = finetune("estimate", str(file)).stdout
    assert (
        "  fits 24 GiB" in needed
        and needed.splitlines()[1:-1] == table.splitlines()[-len(needed.splitlines()) + 1 : -1]
    )


def test_what_can_not_be_recommended_is_told() -> None:
    with pytest.raises(CommandError, match=r"hf://acme/bot: the model's size is unknown.*such as 8B"):
        finetune("recommend", "--model", "hf://acme/bot", "--gpu-memory", "24")
    with pytest.raises(UsageError, match=r"--model Llama-3\.1-8B: no source of a model"):
        finetune("recommend", "--model", "Llama-3.1-8B", "--gpu-memory", "24")
    tight = finetune("recommend", "--model", "hf://meta-llama/Llama-3.1-70B", "--gpu-memory", "24")
    assert "nothing fits 24 GiB a GPU" in tight.stderr


def test_estimate_adds_up(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("SOURCE", "hf://Qwen/Qwen3-8B"))
    told = json.loads(finetune("estimate", str(file), "-o", "json").stdout)["support-bot"]
    total = told.pop("total")
    assert set(told) == set(Estimate._fields) and sum(told.values()) == total
    table = finetune("estimate", str(file), "--gpu-memory", "12").stdout
    assert "8.19B parameters, lora" in table and f"{total / 2**30:.2f} GiB a GPU  does not fit 12 GiB" in table


def test_estimate_takes_the_size_from_the_folder_or_another_model(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("SOURCE", f"file://{tmp_path}/bot"))
    with pytest.raises(CommandError, match="--like NAME takes another model's size"):
        finetune("estimate", str(file))
    assert "8.03B parameters" in finetune("estimate", str(file), "--like", "Llama-3.1-8B").stdout
    (tmp_path / "bot").mkdir()
    config = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    (tmp_path / "bot" / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    assert "0.00B parameters" in finetune("estimate", str(file)).stdout
