"""The node harness itself: what a real cluster does, where other tests rely on it."""

import json
import textwrap

import pytest
from kubernetes.client import ApiException

from tests.cluster.harness.api import Object
from tests.cluster.harness.binaries import VERSION
from tests.node.harness.node import NAME, Node
from tests.node.harness.pods import RESTRICTED_CONTAINER, RESTRICTED_POD, Pods

SERVER = """
    import http.server
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"served")
    http.server.HTTPServer(("", 8000), Handler).serve_forever()
"""
CLIENT = """
    import socket, sys, time, urllib.request
    for host in sys.argv[1:]:
        for attempt in range(50):
            try:
                address = socket.gethostbyname(host)
                break
            except socket.gaierror:  # the record follows the pod's readiness
                time.sleep(0.2)
        print(host, address, urllib.request.urlopen(f"http://{host}:8000", timeout=5).read().decode())
"""
ASK_API_SERVER = """
    import json, os, ssl, urllib.request
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    request = urllib.request.Request(f"https://{os.environ['KUBERNETES_SERVICE_HOST']}/api/v1/namespaces/x/secrets")
    request.add_header("Authorization", "Bearer " + open(f"{folder}/token").read())
    trust = ssl.create_default_context(cafile=f"{folder}/ca.crt")
    try:
        urllib.request.urlopen(request, context=trust, timeout=5)
    except urllib.error.HTTPError as error:
        print(json.load(error)["message"])
"""


def python(script: str, *arguments: str) -> list[str]:
    return ["python3", "-uc", textwrap.dedent(script), *arguments]


def test_node_is_ready(node: Node) -> None:
    (found,) = node.control_plane.api.items("/api/v1/nodes")
    assert found["metadata"]["name"] == NAME
    assert found["status"]["nodeInfo"]["kubeletVersion"] == VERSION
    assert node.seconds["cluster"] < 60


def test_logs_and_exec(pods: Pods, node: Node) -> None:
    assert (
        pods.run("hello", command=python("print('hello from', __import__('socket').gethostname())"))
        == "hello from hello\n"
    )
    pods.create("waits", command=["sleep", "infinity"])
    pods.wait_for_phase("waits", "Running")
    assert node.control_plane.kubectl("exec", "waits", "--", "hostname", namespace=pods.namespace) == "waits\n"


def test_services_have_names_and_addresses(pods: Pods) -> None:
    pods.create("server", command=python(SERVER), pod={"hostname": "server", "subdomain": "headless"})
    special: dict[str, Object] = {"headless": {"clusterIP": "None"}, "balanced": {}}
    for name, fields in special.items():
        spec = {"selector": {"app": "server"}, "ports": [{"port": 8000}]} | fields
        pods.api.post(f"{pods.core}/services", {"metadata": {"name": name}, "spec": spec})
    pods.wait_for_phase("server", "Running")
    pod_address = pods.status("server")["podIP"]
    service_address = pods.api.get(f"{pods.core}/services/balanced")["spec"]["clusterIP"]
    of_pod = f"server.headless.{pods.namespace}.svc.cluster.local"
    assert pods.run("client", command=python(CLIENT, of_pod, "headless", "balanced")).splitlines() == [
        f"{of_pod} {pod_address} served",
        f"headless {pod_address} served",
        f"balanced {service_address} served",
    ]


def test_pods_reach_the_api_server_with_their_own_rights(pods: Pods) -> None:
    message = pods.run("asks", command=python(ASK_API_SERVER))
    assert f'"system:serviceaccount:{pods.namespace}:default" cannot list resource "secrets"' in message


def test_a_claim_outlives_its_pod_and_belongs_to_the_pods_group(pods: Pods) -> None:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    path = f"{pods.core}/persistentvolumeclaims"
    pods.api.post(path, {"metadata": {"name": "data"}, "spec": claim})
    user = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    spec = {
        "securityContext": RESTRICTED_POD | user,
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    }
    container: Object = {
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": RESTRICTED_CONTAINER,
    }
    assert pods.api.get(f"{path}/data")["status"]["phase"] == "Pending"  # nobody wants it yet
    pods.run("writes", silent=True, command=python("open('/data/file', 'w').write('kept')"), pod=spec, **container)
    pods.delete("writes")
    assert pods.run("reads", command=python("print(open('/data/file').read())"), pod=spec, **container) == "kept\n"
    assert pods.api.get(f"{path}/data")["status"]["phase"] == "Bound"


def test_pod_security_restricted_refuses_what_violates_it(pods: Pods) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    pods.api.patch(f"/api/v1/namespaces/{pods.namespace}", {"metadata": {"labels": labels}})
    with pytest.raises(ApiException) as refused:
        pods.create("root", command=["true"])
    assert refused.value.status == 403
    assert 'violates PodSecurity "restricted:latest"' in json.loads(refused.value.body)["message"]
    with pytest.raises(ApiException, match="privileged"):
        pods.create("privileged", command=["true"], securityContext={"privileged": True})
    pods.run(
        "conforms",
        silent=True,
        command=["true"],
        pod={"securityContext": RESTRICTED_POD | {"runAsUser": 1000}},
        securityContext=RESTRICTED_CONTAINER,
    )
