"""The real Prometheus in the node's network, with the scrape configuration that the chart's monitors stand for."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.cluster.harness.api import Object
from tests.cluster.harness.binaries import ensure_tools
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.machine import ADDRESS
from tests.node.harness.node import Node

# Distributions' builds may lack the discovery of Kubernetes (Debian's does).
_MODULE = Path(__file__).parents[1] / "prometheus"
_PACKAGE = "github.com/prometheus/prometheus/cmd/prometheus"
_TAGS = "remove_all_sd,enable_kubernetes_sd"

PORT = 9090
NAMESPACE = "monitoring"
_ACCOUNT = "prometheus"

_SPEC_FIELDS = {"selector", "namespaceSelector", "endpoints", "podMetricsEndpoints"}
_ENDPOINT_FIELDS = {"port", "path", "interval", "honorLabels", "relabelings", "metricRelabelings"}


class Prometheus:
    """Scrapes what the ServiceMonitors and PodMonitors select, and evaluates rules, until the node ends.

    :param monitors: objects of the Prometheus operator's kinds; their interval is replaced by `seconds`.
    """

    def __init__(self, node: Node, monitors: list[Object], rules: Path, seconds: int = 2) -> None:
        folder = node.machine.folder / "prometheus"
        folder.mkdir()
        config = build_config(monitors, rules, _make_account(node), seconds)
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        flags = {
            "config.file": folder / "prometheus.yaml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": f"{ADDRESS}:{PORT}",
        }
        self._daemon = node.machine.start(ensure_prometheus(), **flags)
        wait_until(self._is_ready, "Prometheus ready", 30, describe=self._daemon.read_log)

    def get(self, path: str, **query: Any) -> Any:
        """What its HTTP API answers: the field `data`."""
        with urlopen(f"http://{ADDRESS}:{PORT}/api/v1/{path}?{urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str, **time: float) -> list[Object]:
        """Series with their value now, or at the Unix time `time`."""
        return list(self.get("query", query=expression, **time)["result"])

    def query_range(self, expression: str, start: float, end: float, step: int = 5) -> list[Object]:
        """Series with their values between two moments (Unix time, seconds)."""
        found = self.get("query_range", query=expression, start=start, end=end, step=step)
        return list(found["result"])

    def targets(self) -> list[Object]:
        """What it scrapes now, with labels, health and the last error."""
        return list(self.get("targets", state="active")["activeTargets"])

    def rules(self) -> list[Object]:
        """Its rules with their health and state."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def _is_ready(self) -> bool:
        self._daemon.check()
        try:
            with urlopen(f"http://{ADDRESS}:{PORT}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def ensure_prometheus() -> Path:
    """The program; minutes the first time. Raises MissingProgramError."""
    return ensure_tools(_MODULE, {"prometheus": _PACKAGE}, tags=_TAGS) / "prometheus"


def build_config(monitors: list[Object], rules: Path, kubeconfig: Path, seconds: int) -> Object:
    """Prometheus's configuration; all are scraped every so many seconds."""
    return {
        "global": {"scrape_timeout": f"{seconds}s", "evaluation_interval": "5s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            build_scrape_config(monitor, {"kubeconfig_file": str(kubeconfig)}) | {"scrape_interval": f"{seconds}s"}
            for monitor in monitors
        ],
    }


def build_scrape_config(monitor: Object, discovery: Object) -> Object:
    """The scrape configuration that the Prometheus operator makes of a ServiceMonitor or PodMonitor of one endpoint.

    Its steps for shards, by __tmp labels, are left out. Raises ValueError on a field that isn't translated.
    """
    metadata, spec = monitor["metadata"], monitor["spec"]
    of_pods = monitor["kind"] == "PodMonitor"
    (endpoint,) = spec["podMetricsEndpoints" if of_pods else "endpoints"]
    fields = ((spec, _SPEC_FIELDS), (endpoint, _ENDPOINT_FIELDS), (spec["selector"], {"matchLabels"}))
    if unknown := {field for has, known in fields for field in has.keys() - known}:
        raise ValueError(f"{monitor['kind']} {metadata['name']} has {', '.join(sorted(unknown))}: translate it here")
    selector = spec.get("namespaceSelector", {})
    namespaces = {} if selector.get("any") else {"names": selector.get("matchNames", [metadata["namespace"]])}
    relabel = _relabel_pods if of_pods else _relabel_endpoints
    config = {
        "job_name": f"{'pod' if of_pods else 'service'}Monitor/{metadata['namespace']}/{metadata['name']}/0",
        "honor_labels": endpoint.get("honorLabels", False),
        "kubernetes_sd_configs": [
            {"role": "pod" if of_pods else "endpointslice"}
            | ({"namespaces": namespaces} if namespaces else {})
            | discovery
        ],
        "metrics_path": endpoint.get("path"),
        "scrape_interval": endpoint.get("interval"),
        "relabel_configs": [
            *relabel(metadata, spec["selector"]["matchLabels"], endpoint["port"]),
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *map(_translate, endpoint.get("relabelings", [])),
        ],
        "metric_relabel_configs": [*map(_translate, endpoint.get("metricRelabelings", []))],
    }
    return {key: value for key, value in config.items() if value not in (None, [])}


def _relabel_pods(metadata: Object, labels: dict[str, str], port: str) -> list[Object]:
    return [
        _DROP_FINISHED,
        *_select("pod", labels),
        _keep(port, "pod_container_port_name"),
        _copy("namespace", "namespace"),
        _copy("pod_container_name", "container"),
        _copy("pod_name", "pod"),
        {"target_label": "job", "replacement": f"{metadata['namespace']}/{metadata['name']}"},
    ]


def _relabel_endpoints(metadata: Object, labels: dict[str, str], port: str) -> list[Object]:
    target = _of_kubernetes("endpointslice_address_target_kind", "endpointslice_address_target_name")
    of_target = target | {"separator": ";", "replacement": "${1}"}
    return [
        *_select("service", labels),
        _keep(port, "endpointslice_port_name"),
        of_target | {"regex": "Node;(.*)", "target_label": "node"},
        of_target | {"regex": "Pod;(.*)", "target_label": "pod"},
        _copy("namespace", "namespace"),
        _copy("service_name", "service"),
        _copy("pod_name", "pod"),
        _copy("pod_container_name", "container"),
        _DROP_FINISHED,
        _copy("service_name", "job") | {"replacement": "${1}"},
    ]


def _of_kubernetes(*labels: str) -> Object:
    return {"source_labels": [f"__meta_kubernetes_{label}" for label in labels]}


def _select(kind: str, labels: dict[str, str]) -> list[Object]:
    names = {re.sub(r"\W", "_", label): value for label, value in sorted(labels.items())}
    return [
        _keep(f"({value});true", f"{kind}_label_{name}", f"{kind}_labelpresent_{name}") for name, value in names.items()
    ]


def _keep(regex: str, *labels: str) -> Object:
    return {"action": "keep", "regex": regex} | _of_kubernetes(*labels)


def _copy(label: str, to: str) -> Object:
    return {"target_label": to} | _of_kubernetes(label)


_DROP_FINISHED = {"action": "drop", "regex": "(Failed|Succeeded)"} | _of_kubernetes("pod_phase")


def _translate(relabeling: Object) -> Object:
    """A monitor's sourceLabels are source_labels of Prometheus, and so on."""
    return {re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key): value for key, value in relabeling.items()}


def _make_account(node: Node) -> Path:
    """A kubeconfig that may find pods and services, and no more."""
    kubectl = node.control_plane.kubectl
    kubectl("create", "namespace", NAMESPACE)
    kubectl("create", "serviceaccount", _ACCOUNT, namespace=NAMESPACE)
    resources = "pods,services,endpointslices.discovery.k8s.io"
    kubectl("create", "clusterrole", _ACCOUNT, "--verb=get,list,watch", f"--resource={resources}")
    kubectl(
        "create",
        "clusterrolebinding",
        _ACCOUNT,
        f"--clusterrole={_ACCOUNT}",
        f"--serviceaccount={NAMESPACE}:{_ACCOUNT}",
    )
    return node.control_plane.service_account_kubeconfig(NAMESPACE, _ACCOUNT)
