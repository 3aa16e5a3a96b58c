"""The monitors find the operator's and the trainers' pods and no others, and their series keep their labels.

As far as that can be told without a cluster: tests/node has Prometheus scrape by them.
"""

import json
from pathlib import Path

import pytest
import yaml

from tests.chart.chart import CHART, SYSTEM, VALUES, Object, find, parse, render
from tests.chart.programs import find_monitoring_crds, run_program
from tests.node.harness.prometheus import build_config, build_scrape_config

MONITORING = next(file for file in VALUES if file.stem == "monitoring")
CLUSTER_WIDE = ("--set", "monitoring.serviceMonitor.enabled=true,monitoring.podMonitor.enabled=true")
KUBECONFIG = {"kubeconfig_file": "/etc/prometheus/kubeconfig"}
TRAINER = {
    "__meta_kubernetes_namespace": "team-a",
    "__meta_kubernetes_pod_name": "bot-x",
    "__meta_kubernetes_pod_phase": "Running",
    "__meta_kubernetes_pod_container_name": "trainer",
    "__meta_kubernetes_pod_container_port_name": "metrics",
    "__meta_kubernetes_pod_label_app_kubernetes_io_name": "finetune-trainer",
    "__meta_kubernetes_pod_labelpresent_app_kubernetes_io_name": "true",
}
"""What Prometheus's discovery tells of a trainer's port."""


def monitors(*arguments: str | Path) -> list[Object]:
    return [each for each in render(*arguments) if each["kind"] in ("ServiceMonitor", "PodMonitor")]


def operator_target() -> dict[str, str]:
    """What Prometheus's discovery tells of the operator's port, with the labels of the chart's Service."""
    labels = find(render(), "Service")["metadata"]["labels"]
    names = [name.replace(".", "_").replace("/", "_").replace("-", "_") for name in labels]
    return {
        "__meta_kubernetes_namespace": SYSTEM,
        "__meta_kubernetes_service_name": "finetune-operator",
        "__meta_kubernetes_endpointslice_port_name": "http",
        "__meta_kubernetes_endpointslice_address_target_kind": "Pod",
        "__meta_kubernetes_endpointslice_address_target_name": "finetune-operator-1",
        "__meta_kubernetes_pod_name": "finetune-operator-1",
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_pod_container_name": "operator",
        **dict(zip([f"__meta_kubernetes_service_label_{name}" for name in names], labels.values(), strict=True)),
        **{f"__meta_kubernetes_service_labelpresent_{name}": "true" for name in names},
    }


def relabel(kind: str, targets: list[dict[str, str]], folder: Path) -> list[dict[str, str]]:
    """The labels that Prometheus gives to the targets; none to those that it doesn't scrape."""
    config = without_discovery(build_scrape_config(find(monitors(*CLUSTER_WIDE), kind), KUBECONFIG))
    config["static_configs"] = [
        {"targets": [f"10.0.0.{number}:8000"], "labels": labels} for number, labels in enumerate(targets, start=1)
    ]
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump({"scrape_configs": [config]}))
    found = json.loads(run_program("promtool", "check", "service-discovery", "--timeout=2s", path, config["job_name"]))
    by_address = {each["discoveredLabels"]["__address__"]: each["labels"] for each in found}
    return [
        {name: value for name, value in by_address[f"10.0.0.{number}:8000"].items() if not name.startswith("__")}
        for number in range(1, len(targets) + 1)
    ]


def without_discovery(scrape_config: Object) -> Object:
    """Debian's promtool was built without that of Kubernetes."""
    return {key: value for key, value in scrape_config.items() if key != "kubernetes_sd_configs"}


@pytest.mark.parametrize("values", [MONITORING, None], ids=["one-namespace", "cluster-wide"])
def test_the_configuration_is_valid(values: Path | None, tmp_path: Path):
    found = monitors("--values", values) if values else monitors(*CLUSTER_WIDE)
    config = build_config(found, CHART / "rules" / "finetune.yaml", tmp_path / "kubeconfig", seconds=2)
    namespaces = [each["kubernetes_sd_configs"][0].get("namespaces") for each in config["scrape_configs"]]
    assert namespaces == [{"names": ["team-a"]} if values else None, {"names": [SYSTEM]}]
    config["scrape_configs"] = [without_discovery(each) for each in config["scrape_configs"]]
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    print(run_program("promtool", "check", "config", path))


def test_trainers_are_found_and_nothing_else(tmp_path: Path):
    others = [
        TRAINER | {"__meta_kubernetes_pod_label_app_kubernetes_io_name": "finetune-operator"},
        TRAINER | {"__meta_kubernetes_pod_container_port_name": "debug"},
        TRAINER | {"__meta_kubernetes_pod_phase": "Succeeded"},
    ]
    trainer, *rest = relabel("PodMonitor", [TRAINER, *others], tmp_path)
    assert trainer == {
        "namespace": "team-a",
        "pod": "bot-x",
        "container": "trainer",
        "job": f"{SYSTEM}/finetune-operator-trainers",
        "endpoint": "metrics",
        "instance": "10.0.0.1:8000",
    }
    assert rest == [{}] * len(others)


def test_the_trainers_own_job_is_kept():
    """The label 'job' of its series is the FineTuneJob; Prometheus's own comes second where labels are honoured."""
    (of_trainers,) = (each for each in monitors(*CLUSTER_WIDE) if each["kind"] == "PodMonitor")
    assert build_scrape_config(of_trainers, KUBECONFIG)["honor_labels"] is True


def test_the_operator_is_found_and_no_other_service(tmp_path: Path):
    target = operator_target()
    others = [
        target | {"__meta_kubernetes_service_label_app_kubernetes_io_instance": "another-release"},
        target | {"__meta_kubernetes_endpointslice_port_name": "webhook"},
    ]
    operator, *rest = relabel("ServiceMonitor", [target, *others], tmp_path)
    assert operator == {
        "namespace": SYSTEM,
        "service": "finetune-operator",
        "pod": "finetune-operator-1",
        "container": "operator",
        "job": "finetune-operator",
        "endpoint": "http",
        "instance": "10.0.0.1:8000",
    }
    assert rest == [{}] * len(others)


# Of the Prometheus operator's own tests (pkg/prometheus/promcfg_test.go); beside each is what it makes of it.
PODS = """
kind: PodMonitor
metadata: {name: defaultPodMonitor, namespace: default}
spec:
  selector: {matchLabels: {group: group1}}
  podMetricsEndpoints: [{port: podname, interval: 30s}]
"""
SERVICES = """
kind: ServiceMonitor
metadata: {name: test, namespace: default}
spec:
  selector: {matchLabels: {foo: bar}}
  endpoints:
    - port: https-metrics
      honorLabels: true
      interval: 30s
      metricRelabelings:
        - action: drop
          regex: container_(network_tcp_usage_total|network_udp_usage_total|tasks_state|cpu_load_average_10s)
          sourceLabels: [__name__]
      relabelings:
        - {action: replace, regex: "(.+)(?::d+)", replacement: "$1:9537", sourceLabels: [__address__], targetLabel: __address__}
        - {action: replace, replacement: crio, targetLabel: job}
"""


@pytest.mark.parametrize(
    ("monitor", "golden"),
    [
        (PODS, "podMonitorObjectWithPodName.golden"),
        (SERVICES, "NoEnforcedNamespaceLabelServiceMonitor_Expected.golden"),
    ],
    ids=["PodMonitor", "ServiceMonitor"],
)
def test_it_is_what_the_prometheus_operator_makes(monitor: str, golden: str):
    text = Path(find_monitoring_crds()[0].parents[2], "pkg", "prometheus", "testdata", golden).read_text()
    # There by way of Endpoints, its default, which Kubernetes gives up.
    text = text.replace("role: endpoints\n", "role: endpointslice\n")
    text = text.replace("__meta_kubernetes_endpoint_", "__meta_kubernetes_endpointslice_")
    (expected,) = yaml.safe_load(text)["scrape_configs"]
    expected["relabel_configs"] = [each for each in expected["relabel_configs"] if "__tmp_" not in str(each)]
    assert build_scrape_config(yaml.safe_load(monitor), {}) == expected


def test_what_is_not_translated_is_refused():
    """So that a new field of the chart's monitors doesn't go untested."""
    (monitor,) = parse(PODS.replace("interval: 30s", "interval: 30s, scheme: https"))
    with pytest.raises(ValueError, match="PodMonitor defaultPodMonitor has scheme: translate it"):
        build_scrape_config(monitor, {})
