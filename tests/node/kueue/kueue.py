"""The real Kueue in the node's network, with its definitions and webhooks."""

from collections import defaultdict
from pathlib import Path

import yaml
from kubernetes.client import ApiException

from tests.cluster.harness.api import Object
from tests.cluster.harness.binaries import download_module, ensure_tools
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.machine import ADDRESS
from tests.node.harness.node import Node
from tests.node.harness.webhooks import bring_certificates, make_endpoints

_MODULE = Path(__file__).parent
_SOURCE = "sigs.k8s.io/kueue"
_NAMESPACE, _SERVICE, _SECRET = "kueue-system", "kueue-webhook-service", "kueue-webhook-server-cert"
_VERSION = "kueue.x-k8s.io/v1beta2"
_PORT = 9543
_LEFT_OUT = ("Deployment", "APIService", "ConfigMap")
"""Of its manifests: it is a process here, with a configuration of its own, and nobody asks for its view of the queues."""


class Kueue:
    """Runs until the node ends, for Jobs alone."""

    def __init__(self, node: Node) -> None:
        self._api = node.control_plane.api
        program = ensure_tools(_MODULE, {"kueue": f"{_SOURCE}/cmd/kueue"}) / "kueue"
        source = download_module(_SOURCE, _MODULE)["Dir"]
        manifests = yaml.safe_load_all(node.control_plane.kubectl("kustomize", f"{source}/config/default"))
        kept = [each for each in manifests if each["kind"] not in _LEFT_OUT]
        by_namespace: dict[str, list[Object]] = defaultdict(list)
        for each in kept:
            if each["kind"] == "Service":
                del each["spec"]["selector"]
            by_namespace[each["metadata"].get("namespace", "default")].append(each)
        for namespace, objects in by_namespace.items():
            text = yaml.safe_dump_all(objects)
            node.control_plane.kubectl("apply", "--server-side", "-f", "-", namespace=namespace, stdin=text)
        make_endpoints(self._api, _NAMESPACE, _SERVICE, _PORT)
        folder = node.machine.folder / "kueue-certificates"
        folder.mkdir()
        configuration = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "health": {"healthProbeBindAddress": f"{ADDRESS}:9544"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"port": _PORT, "certDir": str(folder)},
            "leaderElection": {"leaderElect": False},
            "integrations": {"frameworks": ["batch/job"]},
        }
        file = node.machine.folder / "kueue.yaml"
        file.write_text(yaml.safe_dump(configuration))
        self._daemon = node.machine.start(program, kubeconfig=node.control_plane.kubeconfig, config=file)
        bring_certificates(self._api, self._daemon, _NAMESPACE, _SECRET, folder)
        wait_until(self._answers, "Kueue's webhook", 180, describe=self._daemon.read_log)

    def make_queue(self, namespace: str, queue: str, cpu: str, labels: dict[str, str]) -> None:
        """A LocalQueue whose jobs get nodes with these labels, and so much of their CPU together."""
        resources = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "100Gi"}]
        flavors = [{"name": queue, "resources": resources}]
        group = {"coveredResources": ["cpu", "memory"], "flavors": flavors}
        specs = {
            "resourceflavors": ("ResourceFlavor", {"nodeLabels": labels}),
            "clusterqueues": ("ClusterQueue", {"namespaceSelector": {}, "resourceGroups": [group]}),
            f"namespaces/{namespace}/localqueues": ("LocalQueue", {"clusterQueue": queue}),
        }
        for path, (kind, spec) in specs.items():
            body = {"apiVersion": _VERSION, "kind": kind, "metadata": {"name": queue}, "spec": spec}
            self._api.post(f"/apis/{_VERSION}/{path}", body)

    def set_stop_policy(self, queue: str, policy: str) -> None:
        """``HoldAndDrain`` takes the running ones away, ``None`` admits them again."""
        self._api.patch(f"/apis/{_VERSION}/clusterqueues/{queue}", {"spec": {"stopPolicy": policy}})

    def _answers(self) -> bool:
        """Whether the webhook refuses what is invalid, in its own words."""
        self._daemon.check()
        body = {
            "apiVersion": _VERSION,
            "kind": "ClusterQueue",
            "metadata": {"name": "invalid"},
            "spec": {"namespaceSelector": {"matchLabels": {"a key": "b"}}},
        }
        try:
            self._api.post(f"/apis/{_VERSION}/clusterqueues", body, dryRun="All")
        except ApiException as error:
            return "a key" in str(error)
        return False
