"""The chart's release in one namespace, by Helm as users run it."""

import shutil
from pathlib import Path

from finetune_api import names
from tests.chart.chart import CHART, RELEASE
from tests.chart.programs import run_program
from tests.cluster.harness.control_plane import ControlPlane

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
"""Labels of a namespace that enforces Pod Security 'restricted'."""


class Release:
    """Helm's commands on the release in one existing namespace."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def run(self, command: str, *arguments: str | Path) -> str:
        where: list[str | Path] = ["--kubeconfig", self.cluster.kubeconfig, "--namespace", self.namespace]
        return run_program("helm", *command.split(), RELEASE, *arguments, *where)

    def install(self, *arguments: str | Path, chart: Path = CHART) -> str:
        return self.run("install", chart, *arguments)

    def upgrade(self, *arguments: str | Path) -> str:
        return self.run("upgrade", CHART, *arguments)

    def installed(self) -> set[tuple[str, str]]:
        """(kind, name) of all objects of the release that are there."""
        found = self.run("get manifest")
        out = self.cluster.kubectl("get", "--filename", "-", "--output=name", namespace=self.namespace, stdin=found)
        return {tuple(line.split("/", 1)) for line in out.splitlines()}  # type: ignore[misc]


def write_previous_chart(folder: Path) -> Path:
    """The chart as the version before may have been: with a definition that differs. No version was released yet."""
    chart = shutil.copytree(CHART, folder / "previous" / CHART.name)
    _replace(chart / "Chart.yaml", "version: 0.1.0", "version: 0.0.9")
    _replace(chart / "templates" / "crds.yaml", f"    - {names.CATEGORY}\n", "    - old\n")
    return chart


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise ValueError(f"{path} has no {old!r}")
    path.write_text(text.replace(old, new))
