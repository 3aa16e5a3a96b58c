"""manifests/ holds the chart's objects, and kubectl builds them."""

from pathlib import Path

import pytest

from tests.chart.chart import ROOT, SYSTEM, Object, find, parse, render
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tools.chart.manifests import identify

MANIFESTS = ROOT / "manifests"
OVERLAYS = sorted(MANIFESTS.glob("overlays/*"))
ONLY_HELMS = ("helm.sh/chart", "app.kubernetes.io/managed-by")


def build(cluster: ControlPlane, folder: Path) -> list[Object]:
    return parse(cluster.kubectl("kustomize", str(folder)))


def render_for_comparison(*arguments: str | Path) -> list[Object]:
    """The chart's objects without what only Helm needs."""
    objects = render("--skip-tests", "--set", "crds.keep=false", *arguments)
    for each in objects:
        for metadata in (each["metadata"], each.get("spec", {}).get("template", {}).get("metadata", {})):
            for label in ONLY_HELMS:
                metadata.get("labels", {}).pop(label, None)
    return objects


def test_there_is_an_overlay_for_each_platform():
    assert {path.name for path in OVERLAYS} == {"aks", "bare-metal", "cluster-wide", "eks", "gke", "namespaced"}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_is_the_chart_with_its_values(overlay: Path, cluster: ControlPlane):
    built = {identify(each): each for each in build(cluster, overlay)}
    rendered = {identify(each): each for each in render_for_comparison("--values", overlay / "values.yaml")}
    namespace = built.pop(("Namespace", "", "finetune-system"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert built == rendered


def test_overlays_differ_where_platforms_do(cluster: ControlPlane):
    default = {identify(each): each for each in build(cluster, MANIFESTS / "base")}
    for overlay in OVERLAYS:
        differs = {identify(each): each for each in build(cluster, overlay)} != default
        assert differs == (overlay.name != "cluster-wide"), overlay.name


def test_kubectl_applies_the_base_and_its_pods_are_admitted(cluster: ControlPlane):
    base = str(MANIFESTS / "base")
    try:
        cluster.kubectl("apply", "--server-side", "--kustomize", base, namespace=SYSTEM)
        wait_until(lambda: len(cluster.api.items(f"/api/v1/namespaces/{SYSTEM}/pods")) == 2, "2 pods of the operator")
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "--kustomize", base, namespace=SYSTEM)


def test_rights_are_the_charts_and_each_has_its_reason():
    text = (MANIFESTS / "base" / "rbac.yaml").read_text()
    written, rendered = parse(text), render()
    for kind in ("ClusterRole", "Role"):
        role = find(written, kind)
        assert role["rules"] == find(rendered, kind, role["metadata"]["name"])["rules"]
        assert not [rule for rule in role["rules"] if "secrets" in rule["resources"] or "*" in str(rule)]
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("  - apiGroups")]
    assert [lines[number] for number in rules if not lines[number - 1].startswith("  # ")] == []
