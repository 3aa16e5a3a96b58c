"""Kubeflow's real training operator in the node's network, with its CRD and its webhook."""

import functools
from pathlib import Path

import yaml
from kubernetes.client import ApiException

from tests.cluster.harness.api import Object
from tests.cluster.harness.binaries import download_module, ensure_tools
from tests.cluster.harness.definitions import install_definition
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.images import BASE, reference
from tests.node.harness.machine import ADDRESS
from tests.node.harness.node import Node
from tests.node.harness.webhooks import bring_certificates, make_endpoints

_MODULE = Path(__file__).parents[1] / "training_operator"
_SOURCE = "github.com/kubeflow/training-operator"
_PROGRAM = "training-operator.v1"
_NAME, _NAMESPACE = "training-operator", "kubeflow"
_WEBHOOKS = "validator.training-operator.kubeflow.org"
_CERTIFICATES = "/tmp/k8s-webhook-server"
"""Written down in its source: there it looks for what a pod has from its Secret."""
_PORT, _METRICS_PORT, _HEALTH_PORT = 9443, 9444, 9445


class TrainingOperator:
    """Runs until the node ends, for PyTorchJobs alone."""

    def __init__(self, node: Node) -> None:
        self._api = node.control_plane.api
        program = ensure_tools(_MODULE, {_PROGRAM: f"{_SOURCE}/cmd/{_PROGRAM}"}) / _PROGRAM
        install_definition(node.control_plane, find_pytorchjob_crd())
        self._api.post("/api/v1/namespaces", {"metadata": {"name": _NAMESPACE}})
        # It makes its own certificates, keeps them in this Secret and tells its webhook to trust them.
        self._api.post(self._path("secrets"), {"metadata": {"name": f"{_NAME}-webhook-cert"}})
        self._make_service()
        self._api.post(
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
            _read_webhook(find_source() / "manifests/base/webhook/manifests.yaml"),
        )
        folder = node.machine.folder / "training-operator"
        (folder / "serving-certs").mkdir(parents=True)
        Path(_CERTIFICATES).mkdir(exist_ok=True)
        node.machine.run("mount", "--bind", str(folder), _CERTIFICATES)
        self._daemon = node.machine.start(
            program,
            kubeconfig=node.control_plane.kubeconfig,
            enable_scheme="pytorchjob",
            metrics_bind_address=f"{ADDRESS}:{_METRICS_PORT}",
            health_probe_bind_address=f"{ADDRESS}:{_HEALTH_PORT}",
            webhook_server_port=_PORT,
            # Of the workers' init container that waits for the master's name.
            pytorch_init_container_image=reference(BASE),
            # Its default of 20 a second is for clusters that others use too.
            kube_api_qps=100,
            kube_api_burst=100,
        )
        certificates = folder / "serving-certs"
        bring_certificates(self._api, self._daemon, _NAMESPACE, f"{_NAME}-webhook-cert", certificates)
        wait_until(self._answers, "the training operator's webhook", 120, describe=self._daemon.read_log)

    def _path(self, plural: str) -> str:
        return f"/api/v1/namespaces/{_NAMESPACE}/{plural}"

    def _make_service(self) -> None:
        """Through which the API server finds the webhook."""
        metadata = {"name": _NAME, "namespace": _NAMESPACE}
        self._api.post(self._path("services"), {"metadata": metadata, "spec": {"ports": [{"port": 443}]}})
        make_endpoints(self._api, _NAMESPACE, _NAME, _PORT)

    def _answers(self) -> bool:
        """Whether the webhook refuses what is invalid, in its own words."""
        self._daemon.check()
        body = {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": "invalid"},
            "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": {"spec": {"containers": []}}}}},
        }
        path = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs"
        try:
            self._api.post(path, body, dryRun="All")
        except ApiException as error:
            return "must have at least one container" in str(error)
        return False


@functools.cache
def find_source() -> Path:
    """The folder of its Go module, which has its manifests. Raises MissingProgramError."""
    return Path(download_module(_SOURCE, _MODULE)["Dir"])


@functools.cache
def find_scheduler_plugins() -> Path:
    """The folder of a Go module that it uses, with the definition of coscheduling's PodGroups."""
    return Path(download_module("sigs.k8s.io/scheduler-plugins", _MODULE)["Dir"])


def find_pytorchjob_crd() -> Path:
    """The definition of its kind."""
    return find_source() / "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"


def _read_webhook(file: Path) -> Object:
    """The configuration of its webhook for PyTorchJobs."""
    configuration: Object = yaml.safe_load(file.read_text())
    configuration["metadata"]["name"] = _WEBHOOKS
    configuration["webhooks"] = [each for each in configuration["webhooks"] if "pytorchjob" in each["name"]]
    for webhook in configuration["webhooks"]:
        webhook["clientConfig"]["service"] |= {"name": _NAME, "namespace": _NAMESPACE}
    return configuration
