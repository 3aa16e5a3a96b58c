"""The real Prometheus in the node's network, with the scrape configuration that the chart's monitors stand for."""

import json
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


class Prometheus:
    """Scrapes what the ServiceMonitors and PodMonitors select, and evaluates rules, until the node ends.

    :param monitors: objects of the Prometheus operator's kinds; their interval is replaced by `seconds`.
    """

    def __init__(self, node: Node, monitors: list[Object], rules: Path, seconds: int = 2) -> None:
        folder = node.machine.folder / "prometheus"
        folder.mkdir()
        discovery = {"kubeconfig_file": str(_make_account(node))}
        config = {
            "global": {"scrape_interval": f"{seconds}s", "scrape_timeout": f"{seconds}s", "evaluation_interval": "5s"},
            "rule_files": [str(rules)],
            "scrape_configs": [build_scrape_config(monitor, discovery) for monitor in monitors],
        }
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


def build_scrape_config(monitor: Object, discovery: Object) -> Object:
    """The scrape configuration that the Prometheus operator makes of a ServiceMonitor or PodMonitor of one endpoint.

    After its documentation: https://prometheus-operator.dev/docs/api-reference/api/ (PodMonitor, ServiceMonitor).
    """
    metadata, spec = monitor["metadata"], monitor["spec"]
    of_pods = monitor["kind"] == "PodMonitor"
    (endpoint,) = spec["podMetricsEndpoints" if of_pods else "endpoints"]
    selector = spec["namespaceSelector"]
    namespaces = {} if selector.get("any") else {"namespaces": {"names": selector["matchNames"]}}
    labels = spec["selector"]["matchLabels"]
    source, port = ("pod", "pod_container_port_name") if of_pods else ("service", "endpointslice_port_name")
    name = f"{metadata['namespace']}/{metadata['name']}"
    return {
        "job_name": f"{monitor['kind']}/{name}",
        "honor_labels": endpoint.get("honorLabels", False),
        "metrics_path": endpoint["path"],
        "kubernetes_sd_configs": [{"role": "pod" if of_pods else "endpointslice"} | namespaces | discovery],
        "relabel_configs": [
            *(_keep(f"{source}_label_{_escape(label)}", value) for label, value in labels.items()),
            _keep(port, endpoint["port"]),
            *([_drop_finished()] if of_pods else []),
            _copy("namespace", "namespace"),
            _copy("pod_name", "pod"),
            _copy("pod_container_name", "container"),
            {"target_label": "job", "replacement": name} if of_pods else _copy("service_name", "job"),
        ],
    }


def _escape(label: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def _keep(meta: str, value: str) -> Object:
    return {"action": "keep", "source_labels": [f"__meta_kubernetes_{meta}"], "regex": value}


def _drop_finished() -> Object:
    return {"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"}


def _copy(meta: str, label: str) -> Object:
    return {"source_labels": [f"__meta_kubernetes_{meta}"], "target_label": label}


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
