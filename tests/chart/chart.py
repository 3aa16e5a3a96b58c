"""The chart, rendered by Helm."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.chart.programs import run_program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "finetune-operator"
VALUES = sorted(Path(__file__).with_name("values").glob("*.yaml"))
RELEASE, SYSTEM = "finetune-operator", "finetune-system"

Object = dict[str, Any]


def render_text(*arguments: str | Path, chart: Path = CHART) -> str:
    """What `helm template` prints."""
    return run_program("helm", "template", RELEASE, chart, "--namespace", SYSTEM, "--kube-version=1.36.3", *arguments)


def parse(text: str) -> list[Object]:
    """The objects of a stream."""
    return [each for each in yaml.safe_load_all(text) if each]


def render(*arguments: str | Path) -> list[Object]:
    """The objects of `helm template`."""
    return parse(render_text(*arguments))


def find(objects: Iterable[Object], kind: str, name: str | None = None) -> Object:
    """The one object of a kind."""
    (found,) = (each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return found
