"""Rendered objects against files that people have read. ``make golden`` writes them anew; review the difference."""

import json
import os
from pathlib import Path

import pytest
import yaml

from finetune_operator.manifests.build import build_manifests
from finetune_operator.manifests.metadata import Manifest
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob

HERE = Path(__file__).parent
JOBS = sorted((HERE / "jobs").glob("*.yaml"))


def build(path: Path) -> list[Manifest]:
    """The objects of a job's file."""
    job = parse_finetunejob(yaml.safe_load(path.read_text()))
    layout, settings = ContainerLayout(), Settings()
    return build_manifests(job, decide_plan(job, settings, layout), settings, layout)


def render(path: Path) -> str:
    manifests = build(path)
    for manifest in manifests:
        if "data" in manifest:  # readable, instead of one long string
            manifest["data"] = {key: json.loads(text) for key, text in manifest["data"].items()}
    return yaml.safe_dump_all(manifests, sort_keys=False, width=120)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_rendered_objects(path: Path) -> None:
    golden = HERE / "rendered" / path.name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(render(path))
    assert render(path) == golden.read_text()
