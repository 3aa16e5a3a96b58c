"""``finetune data``"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from finetune_api.names import KIND
from finetune_api.spec import FineTuneJob
from finetune_operator.cli.errors import CommandError
from finetune_operator.cli.inputs import read_jobs, read_settings
from finetune_operator.cli.local import build_layout, build_local_run
from finetune_operator.cli.run import find_cache, parse_claims
from finetune_operator.spec.parse import parse_finetunejob

_MODULE = "finetune_trainer.data.preview"


def preview_file(file: Path, rows: int, model: str | None, claims: list[str], settings_file: Path | None) -> int:
    """The exit status of the preview: the tokens of the first rows as the trainer encodes them."""
    if importlib.util.find_spec("finetune_trainer") is None or importlib.util.find_spec("transformers") is None:
        raise CommandError("the trainer is not installed here: install finetune-operator[trainer]")
    if file.suffix in (".yaml", ".yml") or str(file) == "-":
        found = read_jobs(file)
        if len(found.jobs) != 1:
            raise CommandError(f"{file} holds {len(found.jobs)} FineTuneJobs; `data preview` takes a file with one")
        ((job, _),) = found.jobs
        others = found.others
    else:
        job, others = _draft_job(file, model), []
    config_maps = {
        str(each.get("metadata", {}).get("name")): each for each in others if each.get("kind") == "ConfigMap"
    }
    with tempfile.TemporaryDirectory(prefix="finetune-preview-") as root:
        layout = build_layout(job, Path(root), find_cache(), parse_claims(claims))
        local = build_local_run(job, read_settings(settings_file), layout, config_maps, os.environ, set())
        for path, content in local.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        command = [sys.executable, "-m", _MODULE, "--plan", layout.plan_file, "--rows", str(rows)]
        return subprocess.run(command, env=local.environment, check=False).returncode


def _draft_job(file: Path, model: str | None) -> FineTuneJob:
    """A FineTuneJob that stands for a data file alone."""
    if not file.exists():
        raise CommandError(f"{file}: no such file")
    if model is None:
        raise CommandError(f"{file} is data: add --model SOURCE, whose tokenizer and chat template encode it")
    return parse_finetunejob(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": KIND,
            "metadata": {"name": "preview"},
            "spec": {
                "model": {"source": model},
                "dataset": {"source": f"file://{file.absolute()}"},
                "resources": {"gpu": {"count": 0}},
            },
        }
    )
