"""A cluster of one real node: `with Node() as node:`."""

import contextlib
import fcntl
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import yaml

from tests.cluster.harness.api import Object
from tests.cluster.harness.binaries import cache_folder
from tests.cluster.harness.control_plane import ControlPlane, Site
from tests.cluster.harness.provisioner import Provisioner, build_volume
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.container_runtime import ContainerRuntime
from tests.node.harness.images import BASE, OPERATOR, TRAINER, Images, reference
from tests.node.harness.machine import ADDRESS, CGROUP, POD_NETWORK, Machine
from tests.node.harness.programs import ensure_programs

NAME = "finetune-node"
STORAGE_CLASS = "standard"
DNS_ADDRESS = "10.96.0.10"
_KUBELET, _PROXY, _DNS = f"system:node:{NAME}", "system:kube-proxy", "test-dns"
_SELECTED_NODE = "volume.kubernetes.io/selected-node"
_COREFILE = """
.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
    }}
    cache 5
}}
"""


class NodeInUseError(RuntimeError):
    """Another process of this machine has the node."""


class Node(contextlib.ExitStack):
    """Starts a control plane and a node that runs pods, with the images; leaving the block ends all of it.

    node.control_plane   with its kubeconfig, API, kubectl and audit log
    node.seconds         what each part took
    """

    def __init__(self, images: Iterable[str] = (BASE, OPERATOR, TRAINER)) -> None:
        super().__init__()
        self._image_names = images
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self)  # a start that fails half-way leaves nothing behind
            self._start()
            undo.pop_all()
        return self

    def _start(self) -> None:
        with self._timed("programs"):
            programs = ensure_programs()
        cache = cache_folder() / "node"
        cache.mkdir(parents=True, exist_ok=True)
        self.enter_context(_locked(cache / "lock"))
        for leftover in cache.glob("run-*"):  # of a process that was killed
            shutil.rmtree(leftover)
        # In the cache, not in the machine's temporary folder, that may lie in memory: volumes are large.
        folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=cache)))
        self.machine = self.enter_context(Machine(folder))
        self.runtime = ContainerRuntime(self.machine, cache / "containerd", programs.cni, reference(BASE))
        with self._timed("images"):
            self.runtime.start_store()
            self.images = Images(self.runtime)
            self.images.provide(self._image_names)
        with self._timed("cluster"):
            self.runtime.start()
            self._start_control_plane(folder)
            self._start_kubelet(programs.node / "kubelet", folder)
            self._start_network(programs.node / "kube-proxy", programs.coredns, folder)
            self.control_plane.api.post("/apis/storage.k8s.io/v1/storageclasses", _build_storage_class())
            wait_until(self._is_ready, f"node {NAME} Ready", 60, describe=self._kubelet.read_log)

    def describe(self) -> list[str]:
        """What the parts took, and the images."""
        lines = [f"{part}: {seconds:.1f} s" for part, seconds in self.seconds.items()]
        for name in self._image_names:
            cost = f"built in {self.images.seconds[name]:.0f} s" if name in self.images.seconds else "there already"
            lines.append(f"image {name}: {self.runtime.size(reference(name)) / 1e6:.0f} MB, {cost}")
        return lines

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - began

    def _start_control_plane(self, folder: Path) -> None:
        # The API server's certificate at the kubelet, for logs and exec.
        self._certificate, key = folder / "kubelet-client.crt", folder / "kubelet-client.key"
        request = f"openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /O=system:masters/CN=kube-apiserver -keyout {key} -out {self._certificate}"
        subprocess.run(request.split(), check=True, capture_output=True)
        site = Site(
            folder=folder,  # the volumes' too
            address=ADDRESS,
            port=6443,
            command=self.machine.network,
            users={_KUBELET: "system:nodes", _PROXY: "system:node-proxiers", _DNS: "system:masters"},
            apiserver={
                "allow_privileged": "true",  # refused by Pod Security, where that is asked for
                "authorization_mode": "Node,RBAC",
                "enable_admission_plugins": "NodeRestriction",
                "endpoint_reconciler_type": "lease",
                "kubelet_client_certificate": self._certificate,
                "kubelet_client_key": key,
                "kubelet_preferred_address_types": "InternalIP",
            },
            provision=LocalProvisioner,
        )
        self.control_plane = self.enter_context(ControlPlane(site))

    def _start_kubelet(self, program: Path, folder: Path) -> None:
        (folder / "resolv.conf").write_text("")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(self._certificate)}},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}",
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": self.runtime.endpoint,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,  # never: nothing can be pulled again
            "maxPods": 200,
            "resolvConf": str(folder / "resolv.conf"),
            "serializeImagePulls": False,
        }
        (folder / "kubelet.yaml").write_text(yaml.safe_dump(config))
        self._kubelet = self.machine.start(
            program,
            config=folder / "kubelet.yaml",
            kubeconfig=self.control_plane.user_kubeconfig(_KUBELET),
            hostname_override=NAME,
            node_ip=ADDRESS,
        )

    def _start_network(self, kube_proxy: Path, coredns: Path, folder: Path) -> None:
        """Services by kube-proxy, names by CoreDNS on the node."""
        self._proxy = self.machine.start(
            kube_proxy,
            proxy_mode="nftables",
            kubeconfig=self.control_plane.user_kubeconfig(_PROXY),
            hostname_override=NAME,
            cluster_cidr=POD_NETWORK,
            conntrack_max_per_core=0,  # the machine's own setting is left alone
        )
        api, metadata = self.control_plane.api, {"name": "kube-dns", "namespace": "kube-system"}
        ports = [{"name": name, "port": 53, "protocol": name.upper()} for name in ("udp", "tcp")]
        api.post(
            "/api/v1/namespaces/kube-system/services",
            {"metadata": metadata, "spec": {"clusterIP": DNS_ADDRESS, "ports": ports}},
        )
        api.post(
            "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
            {
                "metadata": metadata | {"labels": {"kubernetes.io/service-name": "kube-dns"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}],
                "ports": ports,
            },
        )
        corefile = folder / "Corefile"
        corefile.write_text(_COREFILE.format(address=ADDRESS, kubeconfig=self.control_plane.user_kubeconfig(_DNS)))
        self._dns = self.machine.start(coredns, conf=corefile)

    def _is_ready(self) -> bool:
        for daemon in (self._kubelet, self._proxy, self._dns):
            daemon.check()
        nodes = self.control_plane.api.items("/api/v1/nodes")
        return any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for node in nodes
            for condition in node["status"].get("conditions", ())
        )


class LocalProvisioner(Provisioner):
    """Makes a volume on the node once a pod wants the claim: `local`, so that the kubelet honours fsGroup as for disks."""

    def is_due(self, claim: Object) -> bool:
        return _SELECTED_NODE in claim["metadata"].get("annotations", {})

    def build_volume(self, claim: Object, name: str, folder: Path) -> Object:
        term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}
        affinity = {"required": {"nodeSelectorTerms": [term]}}
        return build_volume(claim, name, {"local": {"path": str(folder)}, "nodeAffinity": affinity})


def _build_storage_class() -> Object:
    return {
        "metadata": {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "tests.finetune.dev/local",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One node at a time. Raises NodeInUseError."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NodeInUseError(
                "another process has the node: `make cluster-down` ends that of `make cluster-up`"
            ) from error
        yield
