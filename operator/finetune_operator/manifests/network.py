"""How the pods of a job talk to each other: devices, further networks, and NCCL's variables for the fabric."""

from typing import Literal

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.manifests.metadata import Manifest

Fabric = Literal["tcp", "infiniband", "roce", "efa"]

FABRICS: dict[Fabric, dict[str, str]] = {
    # NCCL's user guide, environment variables. Everything but loopback and container bridges.
    "tcp": {"NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "^lo,docker"},
    # A link that is down for a moment: 22 is 4.1 us x 2^22 = 17 s, seven times.
    "infiniband": {"NCCL_IB_DISABLE": "0", "NCCL_IB_TIMEOUT": "22", "NCCL_IB_RETRY_CNT": "7"},
    # GID 3 is RoCE v2 over IPv4 on NVIDIA's adapters; traffic class 106 is the lossless one by their convention.
    "roce": {
        "NCCL_IB_DISABLE": "0",
        "NCCL_IB_TIMEOUT": "22",
        "NCCL_IB_RETRY_CNT": "7",
        "NCCL_IB_GID_INDEX": "3",
        "NCCL_IB_TC": "106",
    },
    # AWS' guide to EFA and NCCL; data loader workers are forked, which huge pages of libfabric don't survive.
    "efa": {"FI_PROVIDER": "efa", "FI_EFA_USE_HUGE_PAGE": "0"},
}
_DEVICES = {"efa": "vpc.amazonaws.com/efa"}
RDMA_RESOURCE = "rdma/rdma_shared_device_a"


def build_network_environment(spec: FineTuneJobSpec) -> list[Manifest]:
    """Variables for the fabric; the job's own win."""
    network = spec.network
    variables = (FABRICS[network.fabric] if network.fabric is not None else {}) | (network.nccl or {})
    return [{"name": name, "value": value} for name, value in variables.items()]


def add_network(pod: Manifest, metadata: Manifest, spec: FineTuneJobSpec) -> None:
    """Devices, networks and addresses of the pod."""
    network = spec.network
    if network.rdma is not None:
        (container,) = pod["containers"]
        resource = network.rdma.resource_name or _DEVICES.get(network.fabric or "", RDMA_RESOURCE)
        for part in ("requests", "limits"):
            container["resources"][part][resource] = str(network.rdma.count)
        # RDMA pins memory. Pod Security 'restricted' and 'baseline' forbid it.
        container["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    if network.networks is not None:
        metadata["annotations"] = {names.ANNOTATION_NETWORKS: ",".join(network.networks)} | metadata.get(
            "annotations", {}
        )
    if network.host_network:
        pod["hostNetwork"] = True
        pod["dnsPolicy"] = "ClusterFirstWithHostNet"
