"""Webhooks of controllers that run beside the cluster, as processes in the node's network."""

import base64
from pathlib import Path

from tests.cluster.harness.api import Api, Object
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.machine import ADDRESS, Daemon


def make_endpoints(api: Api, namespace: str, service: str, port: int) -> None:
    """Through which the API server finds the webhooks of a Service without a selector."""
    api.post(
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        {
            "metadata": {
                "name": service,
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}],
            "ports": [{"name": "", "port": port, "protocol": "TCP"}],
        },
    )


def bring_certificates(api: Api, daemon: Daemon, namespace: str, secret: str, folder: Path) -> None:
    """Puts what the controller makes for itself and keeps in a Secret where it would find it in a pod."""

    def read() -> Object | None:
        daemon.check()
        data: Object = api.get(f"/api/v1/namespaces/{namespace}/secrets/{secret}").get("data") or {}
        return data if "tls.crt" in data else None

    certificates = wait_until(read, "its certificates", 60, describe=daemon.read_log)
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (folder / name).write_bytes(base64.b64decode(certificates[name]))
