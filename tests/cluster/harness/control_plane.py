"""A real Kubernetes control plane on loopback: etcd, API server, controller manager and scheduler, up in seconds.

With FINETUNE_TEST_KUBECONFIG set, the cluster it names is used instead and nothing is started (KUBECONFIG alone is
ignored: no test may touch a person's cluster by accident). Such a cluster has no `audit` and no test kubelets.
"""

import contextlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from tests.cluster.harness import rights
from tests.cluster.harness.api import Api
from tests.cluster.harness.audit import POLICY, AuditLog
from tests.cluster.harness.binaries import ensure_binaries
from tests.cluster.harness.provisioner import Provisioner

EXISTING_CLUSTER = "FINETUNE_TEST_KUBECONFIG"
_GROUPS = {
    "admin": "system:masters",
    "test-kubelet": "system:masters",
    "test-provisioner": "system:masters",
    "system:kube-controller-manager": "system:authenticated",
    "system:kube-scheduler": "system:authenticated",
}


@dataclass(frozen=True)
class Site:
    """Where a control plane runs, and what it needs there beyond its own."""

    folder: Path | None = None
    """Where its files are; the machine's temporary folder when absent."""
    address: str = "127.0.0.1"
    port: int | None = None
    """A free one when absent."""
    command: tuple[str, ...] = ()
    """What each program's command starts with."""
    users: Mapping[str, str] = field(default_factory=dict)
    """Further users and their group."""
    apiserver: Mapping[str, Any] = field(default_factory=dict)
    """Flags of the API server that replace or extend those below."""
    provision: Callable[[Api, Path], contextlib.AbstractContextManager[object]] = Provisioner
    """Starts what binds PersistentVolumeClaims to folders below that one."""


class ControlPlane(contextlib.ExitStack):
    """`with ControlPlane() as cp:` starts it; leaving the block stops every process and removes every file.

    cp.kubeconfig     the admin's kubeconfig file
    cp.api            the admin's connection
    cp.audit          the API server's audit log
    cp.start_seconds  from nothing to an API server that says it is ready
    """

    def __init__(self, site: Site | None = None) -> None:
        super().__init__()
        self._site = site or Site()
        self._existing = None if site else os.environ.get(EXISTING_CLUSTER)

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self)  # a start that fails half-way leaves nothing behind
            self.folder = Path(
                self.enter_context(tempfile.TemporaryDirectory(prefix="finetune-cluster-", dir=self._site.folder))
            )
            existing = self._existing
            self.is_existing_cluster = existing is not None
            if existing:
                self._kubectl, self.kubeconfig, self.start_seconds = "kubectl", Path(existing), 0.0
            else:
                self._start(ensure_binaries())
            self.api = Api(self.kubeconfig)
            if not existing:
                self.audit = AuditLog(self._audit_log, self.api.get)
                provisioner = Api(self.user_kubeconfig("test-provisioner"))
                self.enter_context(self._site.provision(provisioner, self.folder / "claims"))
            undo.pop_all()
        return self

    def kubectl(self, *arguments: str, namespace: str = "default", stdin: str | None = None) -> str:
        """Runs kubectl as the admin and returns what it printed; raises CalledProcessError (with stderr) otherwise."""
        command = [self._kubectl, "--kubeconfig", str(self.kubeconfig), "--namespace", namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done.stdout

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig that acts as this (existing) ServiceAccount, by a token of one day."""
        answer = self.api.post(
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86400}},
        )
        flat = self.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json")
        cluster = json.loads(flat)["clusters"][0]["cluster"]
        return self._write_kubeconfig(f"{namespace}.{name}", cluster, answer["status"]["token"], namespace)

    def claim_folder(self, namespace: str, claim: str) -> Path:
        """The folder of this machine behind a bound PersistentVolumeClaim."""
        spec = self.api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")["spec"]
        volume = self.api.get(f"/api/v1/persistentvolumes/{spec['volumeName']}")["spec"]
        return Path((volume.get("hostPath") or volume["local"])["path"])

    def user_kubeconfig(self, user: str) -> Path:
        """The kubeconfig of one of the control plane's own users, such as test-kubelet."""
        cluster = {"server": self.server, "certificate-authority": str(self._certificate)}
        return self._write_kubeconfig(user, cluster, self._tokens[user], "default")

    def _start(self, binaries: Path) -> None:
        began = time.monotonic()
        self._kubectl = str(binaries / "kubectl")
        self._audit_log = self.folder / "audit.jsonl"
        self._certificate = self.folder / "certificates" / "apiserver.crt"
        etcd_port, peer_port, free_port = _free_ports(3)
        address, port = self._site.address, self._site.port or free_port
        self.server = f"https://{address}:{port}"
        groups = _GROUPS | dict(self._site.users)
        self._tokens = {user: secrets.token_hex(16) for user in groups}
        tokens = "".join(f'{self._tokens[user]},{user},{user},"{group}"\n' for user, group in groups.items())
        (self.folder / "tokens.csv").write_text(tokens)
        (self.folder / "audit-policy.json").write_text(json.dumps(POLICY))
        self._audit_log.touch()
        self.callback(lambda: rights.ended.update(rights.count_used(self._audit_log)))
        self._run_etcd(binaries / "etcd", etcd_port, peer_port)
        flags = {
            "etcd_servers": f"http://127.0.0.1:{etcd_port}",
            "bind_address": address,
            "secure_port": port,
            "endpoint_reconciler_type": "none",  # it would refuse a loopback address
            "cert_dir": self._certificate.parent,
            "token_auth_file": self.folder / "tokens.csv",
            "authorization_mode": "RBAC",
            "service_cluster_ip_range": "10.96.0.0/16",
            "service_account_issuer": "https://kubernetes.default.svc",
            # The key that the API server makes for its own certificate serves here as well.
            "service_account_key_file": self._certificate.with_suffix(".key"),
            "service_account_signing_key_file": self._certificate.with_suffix(".key"),
            "audit_policy_file": self.folder / "audit-policy.json",
            "audit_log_path": self._audit_log,
            "audit_log_maxsize": 0,
        }
        server = self._run(binaries / "kube-apiserver", **(flags | dict(self._site.apiserver)))
        self._wait_until_ready(server)
        self.start_seconds = time.monotonic() - began
        self.kubeconfig = self.user_kubeconfig("admin")
        client = {"leader_elect": "false", "secure_port": 0, "kube_api_qps": 1000, "kube_api_burst": 1000}
        self._run(
            binaries / "kube-controller-manager",
            kubeconfig=self.user_kubeconfig("system:kube-controller-manager"),
            use_service_account_credentials="true",
            root_ca_file=self._certificate,
            **client,
        )
        self._run(
            binaries / "kube-scheduler",
            kubeconfig=self.user_kubeconfig("system:kube-scheduler"),
            authentication_skip_lookup="true",
            **client,
        )

    def _run_etcd(self, program: Path, port: int, peer_port: int) -> None:
        # In memory: etcd waits for the disk at every write otherwise.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        data = self.enter_context(tempfile.TemporaryDirectory(prefix="finetune-etcd-", dir=memory))
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        self._run(
            program,
            data_dir=data,
            listen_client_urls=client,
            advertise_client_urls=client,
            listen_peer_urls=peer,
            initial_advertise_peer_urls=peer,
            initial_cluster=f"default={peer}",
        )

    def _run(self, program: Path, **flags: Any) -> subprocess.Popen[bytes]:
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        log = self.enter_context((self.folder / f"{program.name}.log").open("wb"))
        # setpriv: the child dies with this process, however that ends.
        command = [*self._site.command, "setpriv", "--pdeathsig", "KILL", str(program), *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        self.callback(process.wait)
        self.callback(process.kill)  # not terminate: all of it is thrown away
        return process

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.poll() is None:
            # Until then: no certificate yet, connection refused, or 500 while its own controllers start.
            with contextlib.suppress(OSError):
                trust = ssl.create_default_context(cafile=self._certificate)
                with urllib.request.urlopen(f"{self.server}/readyz", context=trust, timeout=5):
                    return
            time.sleep(0.05)
        log = (self.folder / "kube-apiserver.log").read_text()[-3000:]
        raise RuntimeError(f"the API server ended or was not ready after 60 s; the end of its log:\n{log}")

    def _write_kubeconfig(self, user: str, cluster: dict[str, str], token: str, namespace: str) -> Path:
        path = self.folder / f"{user.replace(':', '.')}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))
        path.chmod(0o600)
        return path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
