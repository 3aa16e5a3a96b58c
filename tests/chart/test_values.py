"""Values that can't work are refused by Helm, before anything is installed, by a message that names the value."""

import subprocess
from pathlib import Path

import pytest
import yaml

from finetune_operator.settings import Settings
from tests.chart.chart import CHART, render, render_text
from tests.chart.programs import run_program
from tools.chart.documents import build_values
from tools.chart.values import SET_BY_THE_CHART, Values

# What is written, and what the message says.
BAD = {
    "replica: 3": "additional properties 'replica' not allowed",
    "replicas: 0": "/replicas': minimum: got 0, want 1",
    "replicas: two": "/replicas': got string, want integer",
    "image: finetune-operator:1": "/image': got string, want object",
    "image: {digest: latest}": "/image/digest': 'latest' does not match pattern",
    "image: {pullPolicy: Sometimes}": "/image/pullPolicy': value must be one of",
    "imagePullSecrets: [registry]": "/imagePullSecrets/0': got string, want object",
    "watchNamespaces: team-a": "/watchNamespaces': got string, want array",
    "watchNamespaces: [Team_A]": "/watchNamespaces/0': 'Team_A' does not match pattern",
    "watchNamespaces: [a, a]": "/watchNamespaces': items at 0 and 1 are equal",
    "crds: {install: 'yes'}": "/crds/install': got string, want boolean",
    "resources: {limits: {memory: 1 gigabyte}}": "/resources/limits/memory': '1 gigabyte' does not match pattern",
    "resources: {limits: {gpu: 1}}": "/resources/limits': additional properties 'gpu' not allowed",
    "podLabels: {bad key: a}": "/podLabels': additional properties 'bad key' not allowed",
    "podAnnotations: {a: 1}": "/podAnnotations/a': got number, want string",
    "tolerations: [{key: a, effect: NoRun}]": "/tolerations/0/effect': value must be one of",
    "networkPolicy: {apiServer: {ports: []}}": "/networkPolicy/apiServer/ports': minItems: got 0, want 1",
    "networkPolicy: {apiServer: {cidrs: [10.0.0.1]}}": "/networkPolicy/apiServer/cidrs/0': '10.0.0.1' does not match pattern",
    "monitoring: {podMonitor: {interval: 30}}": "/monitoring/podMonitor/interval': got number, want string",
    "logLevel: trace": "/logLevel': value must be one of",
    "settings: {wokers: 3}": "/settings': additional properties 'wokers' not allowed",
    "settings: {workers: 0}": "/settings/workers': minimum: got 0, want 1",
    "settings: {workers: 1000}": "/settings/workers': maximum: got 1,000, want 256",
    "settings: {gpuDefaults: {memory: 64gb}}": "/settings/gpuDefaults/memory': '64gb' does not match pattern",
    "settings: {gpuDefaults: {cpu: true}}": "/settings/gpuDefaults/cpu': got boolean, want integer or string",
    "settings: {terminationGracePeriod: 2 minutes}": "/settings/terminationGracePeriod': '2 minutes' does not match pattern",
    "settings: {output: {storageClass: Fast SSD}}": "/settings/output/storageClass': 'Fast SSD' does not match pattern",
    "settings: {securityContext: {privileged: true}}": "/settings/securityContext': additional properties 'privileged'",
    "settings: {logFormat: xml}": "/settings/logFormat': value must be one of",
    # The chart sets these itself.
    "settings: {namespaces: [a]}": "/settings': additional properties 'namespaces' not allowed",
    "settings: {healthPort: 9000}": "/settings': additional properties 'healthPort' not allowed",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_bad_values_are_refused_by_name(text: str, tmp_path: Path):
    path = tmp_path / "values.yaml"
    path.write_text(text)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render("--values", path)
    assert BAD[text] in refused.value.stderr


def test_the_defaults_are_what_the_model_says():
    written = yaml.safe_load((CHART / "values.yaml").read_text())
    assert written == build_values(Values())
    settings = Settings.model_validate(written["settings"])
    assert settings == Settings()
    assert Values.model_validate(written) == Values()
    assert Settings.model_fields.keys() >= SET_BY_THE_CHART


def test_the_chart_can_be_part_of_another(tmp_path: Path):
    """Helm then adds `global` to its values."""
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts" / "finetune-operator").symlink_to(CHART)
    (parent / "Chart.yaml").write_text("{apiVersion: v2, name: parent, version: 1.0.0}")
    (parent / "values.yaml").write_text("{global: {region: here}, finetune-operator: {replicas: 3}}")
    assert "replicas: 3" in render_text(chart=parent)


def test_an_old_cluster_is_refused():
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run_program("helm", "template", "old", CHART, "--kube-version=1.30.0")
    assert "kubeVersion" in refused.value.stderr
