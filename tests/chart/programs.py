"""Helm, kubeconform and promtool: built or fetched once into the cache, run as users run them."""

import functools
import re
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.harness.binaries import MissingProgramError, download_module, ensure_packaged, ensure_tools
from tests.node.harness.training_operator import find_scheduler_plugins

MODULE = Path(__file__).with_name("tools")
PACKAGES = {"helm": "helm.sh/helm/v4/cmd/helm", "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}
HELM_VERSION = re.findall(r"\bhelm\.sh/helm/v4 (v[\d.]+)", (MODULE / "go.mod").read_text())[0]
LDFLAGS = f"-s -w -X helm.sh/helm/v4/internal/version.version={HELM_VERSION}"
MONITORING = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
MONITORING_SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
VOLCANO = "volcano.sh/volcano@v1.10.0"
VOLCANO_SUM = "h1:+GzQinGgeV0j58WpWpxByOXgF+YfUPW55zghM8GqjF0="


@functools.cache
def find_program(name: str) -> Path:
    """helm, kubeconform or promtool; minutes the first time. Raises MissingProgramError."""
    if name == "promtool":
        return ensure_packaged(name, "prometheus")
    return ensure_tools(MODULE, PACKAGES, LDFLAGS) / name


def run_program(name: str, *arguments: str | Path, stdin: str | None = None, cwd: Path | None = None) -> str:
    """What it printed; raises CalledProcessError, with its output as a note, when it fails."""
    command = [str(find_program(name)), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(done.stdout + done.stderr)
        raise error
    return done.stdout


@functools.cache
def find_monitoring_crds() -> list[Path]:
    """CustomResourceDefinitions of the Prometheus operator that the chart's objects are of, from its Go module."""
    folder = _download(MONITORING, MONITORING_SUM) / "example/prometheus-operator-crd"
    return [
        folder / f"monitoring.coreos.com_{plural}.yaml"
        for plural in ("servicemonitors", "podmonitors", "prometheusrules")
    ]


@functools.cache
def find_pod_group_crds() -> dict[str, Path]:
    """CustomResourceDefinition of each gang scheduler's PodGroups, from its Go module."""
    volcano = _download(VOLCANO, VOLCANO_SUM) / "config/crd/volcano/bases/scheduling.volcano.sh_podgroups.yaml"
    return {"volcano": volcano, "scheduler-plugins": find_scheduler_plugins() / "manifests/coscheduling/crd.yaml"}


def _download(name: str, checksum: str) -> Path:
    """The folder of a Go module. Raises MissingProgramError when it is not the one of this checksum."""
    module = download_module(name, Path(tempfile.gettempdir()))
    if module["Sum"] != checksum:
        raise MissingProgramError(f"{name} has the checksum {module['Sum']} instead of {checksum}")
    return Path(module["Dir"])
