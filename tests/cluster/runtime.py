"""What the tests of the operator's runtime share: the CRD, a ServiceAccount with rights of its own, a Cluster on it."""

from pathlib import Path

from kubernetes.config import new_client_from_config

from finetune_api import names
from finetune_operator.cluster.transport import Transport
from finetune_operator.telemetry import Telemetry
from tests.cluster.harness.api import Object
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.definitions import wait_for_definition

ACCOUNT = "operator"
CRDS = Path(__file__).parents[2] / "crds"
FINETUNEJOBS = f"/apis/{names.API_VERSION}"


def install_crd(control_plane: ControlPlane) -> None:
    """Apply crds/ and wait until FineTuneJobs are served."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(CRDS))
    wait_for_definition(control_plane, f"{names.PLURAL}.{names.GROUP}")


def create_account(control_plane: ControlPlane, namespace: str, name: str = ACCOUNT) -> Path:
    """A ServiceAccount that may do in this namespace what the operator does; its kubeconfig."""
    read, write = ["get", "list", "watch"], ["create", "update", "patch", "delete"]
    rules = [
        {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "verbs": read},
        {"apiGroups": [names.GROUP], "resources": [f"{names.PLURAL}/status"], "verbs": ["update"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": read + write},
        {"apiGroups": [""], "resources": ["pods"], "verbs": read},
        {"apiGroups": [""], "resources": ["configmaps", "persistentvolumeclaims"], "verbs": read + write},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    api, metadata = control_plane.api, {"metadata": {"name": name}}
    api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", metadata)
    api.post(f"/apis/{rbac}/v1/namespaces/{namespace}/roles", metadata | {"rules": rules})
    api.post(
        f"/apis/{rbac}/v1/namespaces/{namespace}/rolebindings",
        metadata
        | {
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    )
    return control_plane.service_account_kubeconfig(namespace, name)


def connect(kubeconfig: Path, telemetry: Telemetry | None = None, user_agent: str = "tests") -> Transport:
    client = new_client_from_config(str(kubeconfig), persist_config=False)
    return Transport(client, telemetry or Telemetry(), user_agent)


def create_finetunejob(control_plane: ControlPlane, namespace: str, name: str) -> Object:
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {"model": {"source": "pvc://models/base"}, "dataset": {"source": "pvc://data/train.jsonl"}},
    }
    return control_plane.api.post(f"{FINETUNEJOBS}/namespaces/{namespace}/{names.PLURAL}", body)
