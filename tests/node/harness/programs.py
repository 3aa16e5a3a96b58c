"""The programs of a node: container tools of the distribution, Kubernetes' own out of Go modules."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.harness.binaries import MissingProgramError, build_binaries, ensure_binaries, ensure_tools

_PACKAGES = {
    "buildah": "buildah",
    "containerd": "containerd",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nft": "nftables",  # kube-proxy's
    "openssl": "openssl",
    "runc": "runc",
    "skopeo": "skopeo",
    "tini": "tini",
}
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_COREDNS = Path(__file__).parents[1] / "coredns"


@dataclass(frozen=True)
class Programs:
    """Where they are; those of the distribution are on PATH."""

    control_plane: Path
    """Folder of PROGRAMS."""
    node: Path
    """Folder of kubelet and kube-proxy."""
    coredns: Path
    cni: Path
    """Folder of the network plugins."""


def ensure_programs() -> Programs:
    """Installs and builds what is not there yet (minutes, once).

    Raises MissingProgramError where a node can't be had, with the reason.
    """
    _check_rights()
    _ensure_packages()
    node = build_binaries(("kubelet", "kube-proxy"))
    coredns = ensure_tools(_COREDNS, {"coredns": "."}) / "coredns"
    return Programs(ensure_binaries(), node, coredns, _find_cni() or _CNI_FOLDERS[0])


def _check_rights() -> None:
    if os.geteuid() != 0:
        raise MissingProgramError("a node needs root: for namespaces, mounts and cgroups.")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MissingProgramError(f"a node needs namespaces, refused here: {done.stderr.strip()}")


def _ensure_packages() -> None:
    missing = {package for program, package in _PACKAGES.items() if not shutil.which(program)}
    if not _find_cni():
        missing.add("containernetworking-plugins")
    if not missing:
        return
    names = sorted(missing)
    if not shutil.which("apt-get"):
        raise MissingProgramError(f"a node needs {', '.join(names)} (the names of Debian's packages): install them.")
    print(f"installing {' '.join(names)}", file=sys.stderr, flush=True)
    # --no-remove: never in place of what somebody has, such as another package of containerd.
    install = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", "--no-remove", *names]
    for command in (["apt-get", "-qq", "update"], install):
        done = subprocess.run(
            command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingProgramError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


def _find_cni() -> Path | None:
    return next((folder for folder in _CNI_FOLDERS if (folder / "ptp").is_file()), None)
