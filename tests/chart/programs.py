"""Helm, kubeconform and promtool: built or fetched once into the cache, run as users run them."""

import functools
import re
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.harness.binaries import MissingProgramError, download_module, ensure_packaged, ensure_tools

MODULE = Path(__file__).with_name("tools")
PACKAGES = {"helm": "helm.sh/helm/v4/cmd/helm", "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}
HELM_VERSION = re.findall(r"\bhelm\.sh/helm/v4 (v[\d.]+)", (MODULE / "go.mod").read_text())[0]
LDFLAGS = f"-s -w -X helm.sh/helm/v4/internal/version.version={HELM_VERSION}"
MONITORING = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
MONITORING_SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="


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
    module = download_module(MONITORING, Path(tempfile.gettempdir()))
    if module["Sum"] != MONITORING_SUM:
        raise MissingProgramError(f"{MONITORING} has the checksum {module['Sum']} instead of {MONITORING_SUM}")
    folder = Path(module["Dir"], "example", "prometheus-operator-crd")
    return [
        folder / f"monitoring.coreos.com_{plural}.yaml"
        for plural in ("servicemonitors", "podmonitors", "prometheusrules")
    ]
