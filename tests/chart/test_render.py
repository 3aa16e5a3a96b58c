"""What the chart renders is valid to the API server's own schemas, for every kind of installation."""

from pathlib import Path

import pytest
import yaml

from finetune_api import names
from finetune_operator.settings import Settings, load_settings
from tests.chart.chart import CHART, SYSTEM, VALUES, Object, find, parse, render, render_text
from tests.chart.programs import run_program
from tests.chart.schemas import LOCATION

MANAGED = {"namespaces", "health_port", "lease_namespace", "lease_name"}


def check(text: str, schemas: Path) -> str:
    return run_program(
        "kubeconform", "-strict", "-summary", "-verbose", "-schema-location", f"{schemas}/{LOCATION}", stdin=text
    )


def load(objects: list[Object], folder: Path) -> Settings:
    """The settings file, as the operator reads it."""
    path = folder / "settings.yaml"
    path.write_text(next(each["data"]["settings.yaml"] for each in objects if "settings.yaml" in each.get("data", {})))
    return load_settings(path)


def test_lint():
    for values in VALUES:
        run_program("helm", "lint", "--strict", CHART, "--values", values)


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_objects_are_valid(values: Path, schemas: Path, tmp_path: Path):
    text = render_text("--values", values)
    print(check(text, schemas).splitlines()[-1])
    load(parse(text), tmp_path)


def test_the_schemas_refuse_what_is_wrong(schemas: Path):
    text = yaml.safe_dump_all(render())
    check(text, schemas)
    for right, wrong in {
        "terminationGracePeriodSeconds": "terminationGraceSeconds",
        "minAvailable: 1": "minAvailable: [1]",
        "apiVersion: policy/v1": "apiVersion: policy/v1beta1",
    }.items():
        assert right in text
        with pytest.raises(Exception, match="non-zero exit status"):
            check(text.replace(right, wrong), schemas)


def test_settings_are_the_operators_defaults_and_follow_the_release(tmp_path: Path):
    settings = load(render(), tmp_path)
    assert settings == Settings(lease_namespace=SYSTEM)
    settings = load(render("--set", "fullnameOverride=other,watchNamespaces={team-a,team-b}"), tmp_path)
    assert (settings.lease_name, settings.namespaces) == ("other", ["team-a", "team-b"])


def test_every_setting_reaches_the_operator(tmp_path: Path):
    path = next(path for path in VALUES if path.stem == "settings")
    settings, written = load(render("--values", path), tmp_path), yaml.safe_load(path.read_text())["settings"]
    given, defaults = Settings.model_validate(written), Settings()
    for name in Settings.model_fields.keys() - MANAGED - {"security_context", "image_pull_secrets"}:
        assert getattr(settings, name) == getattr(given, name) != getattr(defaults, name), name
    assert settings.security_context.run_as_user == 1000700000
    assert settings.security_context.run_as_non_root, "what isn't given keeps the restricted default"


def test_a_change_of_the_settings_restarts_the_pods():
    def checksum(*arguments: str) -> str:
        template = find(render(*arguments), "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]["checksum/settings"]

    assert checksum() == checksum("--set", "replicas=3")
    assert checksum() != checksum("--set", "settings.workers=3")


def test_one_replica_needs_no_budget():
    kinds = [each["kind"] for each in render("--set", "replicas=1")]
    assert "PodDisruptionBudget" not in kinds
    assert "PodDisruptionBudget" in [each["kind"] for each in render()]


def test_monitors_and_policies_find_the_trainers_pods():
    rendered = yaml.safe_load_all((CHART.parents[1] / "tests/golden/rendered/minimal.yaml").read_text())
    pod = find(rendered, "Job")["spec"]["template"]
    ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
    objects = render("--values", next(path for path in VALUES if path.stem == "everything"))
    monitor = find(objects, "PodMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports == {names.METRICS_PORT_NAME}
    egress = find(objects, "NetworkPolicy")["spec"]["egress"][1]
    assert egress["to"][0]["podSelector"] == monitor["selector"]
    assert egress["ports"][0]["port"] in ports


def test_the_tests_pod_is_none_of_the_operators():
    objects = render()
    selector = find(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= find(objects, "Pod")["metadata"]["labels"].items()
    assert selector == find(objects, "Service")["spec"]["selector"]


def test_nothing_is_cluster_wide_for_a_tenant():
    switches = "watchNamespaces={team-a},crds.install=false,rbac.userRoles=false"
    objects = render("--set", switches)
    assert [each["kind"] for each in objects if "namespace" not in each["metadata"]] == []


def test_no_secret_in_any_installation():
    for values in VALUES:
        assert "Secret" not in [each["kind"] for each in render("--values", values)]
