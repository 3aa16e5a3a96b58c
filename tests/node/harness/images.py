"""The images of both Dockerfiles, built here without a registry; each is built again only when what goes into it changed."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.harness.binaries import cache_folder
from tests.node.harness.container_runtime import ContainerRuntime

REPOSITORY = Path(__file__).parents[3]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
BASE, OPERATOR, TRAINER = "finetune-base", "finetune-operator", "finetune-trainer"

_SUITE, _PACKAGES = "bookworm", "python3,ca-certificates"
_EPOCH = "1577836800"  # any moment; the same one in all layers
_SOURCES = ("pyproject.toml", "README.md", "operator", "trainer_image", ".dockerignore", "requirements/build.txt")
_INPUTS = {
    OPERATOR: ("Dockerfile.operator", "requirements/operator.txt", *_SOURCES),
    TRAINER: (
        "Dockerfile.trainer",
        "requirements/trainer.txt",
        "requirements/models.txt",
        "requirements/kernels.txt",
        *_SOURCES,
    ),
}
_ARGUMENTS = {OPERATOR: {}, TRAINER: {"SYSTEM_PACKAGES": "gcc libc6-dev libpython3-dev"}}
_BASE_DOCKERFILE = """
FROM scratch
ADD rootfs.tar /
CMD ["sleep", "infinity"]
"""
# Mounts of its own, as records of them are in a folder of its own: nothing is left of a build that was interrupted.
_ISOLATION = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def reference(name: str) -> str:
    """The image's full name in containerd: what a kubelet makes of ``name:VERSION``."""
    return f"docker.io/library/{name}:{VERSION}"


def build_tag(name: str) -> str:
    """The image's name in the stores here; it changes with what goes into the image."""
    return f"localhost/{name}:{_key(name)}"


class Images:
    """Brings the images into a container runtime's store, and tells how long that took.

    images.seconds   image -> what it cost to build it and to take it in; only those that were not there
    """

    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self.builder = Builder(cache_folder() / "node" / "buildah")
        self.seconds: dict[str, float] = {}

    def provide(self, names: Iterable[str]) -> None:
        """Makes these images, in their present state, those that pods get."""
        tags = {name: build_tag(name) for name in names}
        kept = {*tags.values(), *map(reference, tags)}
        for old in set(self._runtime.images()) - kept:  # first, as the disk may have no room for both
            self._runtime.remove(old)
        present = self._runtime.images()
        for name, tag in tags.items():
            if tag not in present:
                began = time.monotonic()
                print(f"building the image {name}", file=sys.stderr, flush=True)
                self.builder.build(name, tag)
                self._runtime.import_image(tag, functools.partial(self.builder.copy, tag))
                self.seconds[name] = time.monotonic() - began
            self._runtime.tag(tag, reference(name))


class Builder:
    """buildah with a store of its own in the cache."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._log = root.with_suffix(".log")
        root.mkdir(parents=True, exist_ok=True)

    def build(self, name: str, tag: str) -> None:
        """Builds an image and removes what earlier builds left of it. Raises RuntimeError with the end of the log."""
        self._log.write_text("")
        self._run("rm", "--all")  # of a build that was killed; it would hold on to old images
        self._build_image(name, tag)
        for old in self._list(f"localhost/{name}"):
            if old != tag:
                self._run("rmi", old)

    def build_again(self, name: str) -> list[str]:
        """Builds the image without what is cached of it; the digests of its layers."""
        tag = f"localhost/{name}-again"
        self._build_image(name, tag, "--no-cache")
        digests = json.loads(self._run("inspect", "--type", "image", tag))["OCIv1"]["rootfs"]["diff_ids"]
        self._run("rmi", tag)
        return list(digests)

    def run_inside(self, tag: str, *command: str) -> str:
        """What a command prints in a container of the image, run as root."""
        container = self._run("from", tag).strip()
        try:
            return self._run("run", "--isolation=chroot", "--user=0", container, "--", *command)
        finally:
            self._run("rm", container)

    def copy(self, tag: str, layout: Path) -> None:
        """Adds the image to an OCI layout, its layers not compressed; passes over layers that are there."""
        with tempfile.TemporaryDirectory(prefix="finetune-skopeo-") as folder:
            source = f"containers-storage:[overlay@{self._root}+{folder}]{tag}"
            options = ("--insecure-policy", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers")
            self._call(*_ISOLATION, "skopeo", *options, source, f"oci:{layout}:{tag}")

    def _build_image(self, name: str, tag: str, *options: str) -> None:
        base = build_tag(BASE)
        if not self._list(base):
            self._build_base(base)
        if name != BASE:
            arguments = {"BASE": base, "VERSION": VERSION} | _ARGUMENTS[name]
            dockerfile = REPOSITORY / f"Dockerfile.{name.removeprefix('finetune-')}"
            self._build(REPOSITORY, dockerfile, tag, arguments, *options)

    def _build_base(self, tag: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._root.parent) as folder:
            root = f"{folder}/rootfs"
            self._call("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, root)
            for leftover in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
                shutil.rmtree(f"{root}/{leftover}")
                Path(root, leftover).mkdir()
            archive = ["--sort=name", f"--mtime=@{_EPOCH}", "--numeric-owner", "--file", f"{folder}/rootfs.tar"]
            self._call("tar", "--create", "--directory", root, *archive, ".")
            shutil.rmtree(root)
            Path(folder, "Dockerfile").write_text(_BASE_DOCKERFILE)
            self._build(Path(folder), Path(folder, "Dockerfile"), tag, {})

    def _build(self, context: Path, dockerfile: Path, tag: str, arguments: dict[str, str], *options: str) -> None:
        # Package indexes and certificates are this machine's, and so is uv's cache: no package is fetched twice.
        volumes = {}
        if shutil.which("uv"):
            uv_cache = Path(
                subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
            )
            uv_cache.mkdir(parents=True, exist_ok=True)
            volumes[str(uv_cache)] = "/mnt/uv-cache"
            arguments = arguments | {"UV_CACHE_DIR": "/mnt/uv-cache"}
        certificates = os.environ.get("SSL_CERT_FILE")
        if certificates:
            volumes[certificates] = "/mnt/certificates.crt:ro"
            arguments = arguments | {"SSL_CERT_FILE": "/mnt/certificates.crt"}
        for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
            if name in os.environ:
                arguments = arguments | {name: os.environ[name]}
        options += tuple(f"--volume={source}:{target}" for source, target in volumes.items())
        options += tuple(f"--build-arg={name}={value}" for name, value in arguments.items())
        secret = Path("/etc/pip.conf")
        if secret.is_file():
            options += (f"--secret=id=pip.conf,src={secret}",)
        self._run(
            "build", "--isolation=chroot", "--layers", f"--timestamp={_EPOCH}", *options,
            f"--file={dockerfile}", f"--tag={tag}", str(context),
        )  # fmt: skip

    def _list(self, repository: str) -> list[str]:
        """The tags of the images of this name."""
        output = self._run("images", "--format", "{{.Name}}:{{.Tag}}", "--filter", f"reference={repository}")
        return output.split()

    def _run(self, *arguments: str) -> str:
        with tempfile.TemporaryDirectory(prefix="finetune-buildah-") as folder:
            storage = ("--root", str(self._root), "--runroot", folder, "--storage-driver", "overlay")
            return self._call(*_ISOLATION, "buildah", *storage, *arguments)

    def _call(self, *command: str) -> str:
        with self._log.open("a") as log:
            done = subprocess.run(
                ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, stderr=log, text=True, check=False
            )
            log.write(done.stdout)
        if done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed; the end of its log:\n{self._log.read_text()[-3000:]}")
        return done.stdout


@functools.cache
def _key(name: str) -> str:
    """A hash of all that goes into an image."""
    digest = hashlib.sha256(f"{_SUITE} {_PACKAGES} {_BASE_DOCKERFILE} {_EPOCH}".encode())
    if name != BASE:
        digest.update(f"{VERSION} {_ARGUMENTS[name]}".encode())
        for path in _INPUTS[name]:
            files = [REPOSITORY / path] if (REPOSITORY / path).is_file() else sorted((REPOSITORY / path).rglob("*"))
            for file in files:
                if file.is_file() and "__pycache__" not in file.parts:
                    digest.update(f"{file.relative_to(REPOSITORY)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
