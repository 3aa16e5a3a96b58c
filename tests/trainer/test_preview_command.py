"""``finetune data preview`` from the command line to the marked tokens."""

from pathlib import Path

import pytest

from finetune_operator.cli.data import preview_file
from finetune_operator.cli.errors import CommandError
from tests.trainer.plans import write_conversations

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: bot}}
spec:
  model: {{source: "file://{model}"}}
  dataset: {{source: configMap://rows/train.jsonl}}
  resources: {{gpu: {{count: 0}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: rows}}
data:
  train.jsonl: |
    {{"prompt": "Q", "completion": " the answer"}}
"""


def test_a_job_with_its_config_map(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(model=tiny_model))
    assert preview_file(job, 3, None, [], None) == 0
    assert "[[ the answer" in capfd.readouterr().out


def test_a_data_file_with_a_models_template(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_conversations(tmp_path / "rows.jsonl", 4)
    assert preview_file(data, 2, f"file://{tiny_model}", [], None) == 0
    shown = capfd.readouterr().out
    assert shown.count(" trained") == 2 and "[[It is 0.<|im_end|>" in shown


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"none\.jsonl: no such file"):
        preview_file(tmp_path / "none.jsonl", 2, None, [], None)
    data = write_conversations(tmp_path / "rows.jsonl", 4)
    with pytest.raises(CommandError, match=r"rows\.jsonl is data: add --model SOURCE"):
        preview_file(data, 2, None, [], None)
