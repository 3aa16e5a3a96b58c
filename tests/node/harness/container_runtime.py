"""containerd with its images, which stay in the cache between runs."""

import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.harness.waiting import wait_until
from tests.node.harness.machine import POD_NETWORK, Machine

_CRI = "io.containerd.grpc.v1.cri"
_CONFIG = """
version = 2
root = "{root}"
state = "{folder}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{socket}"
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "{collect_after}"
[plugins."{cri}"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true  # lowering it needs CAP_SYS_RESOURCE
  disable_apparmor = true
  [plugins."{cri}".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}"
  [plugins."{cri}".containerd]
    default_runtime_name = "runc"
    [plugins."{cri}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


class ContainerRuntime:
    """containerd in a machine: start_store() for images, start() for pods; the second ends the first.

    runtime.endpoint   its socket, as a kubelet wants it
    """

    def __init__(self, machine: Machine, root: Path, plugins: Path, pause: str) -> None:
        self._machine, self._root, self._plugins, self._pause = machine, root, plugins, pause
        self._folder = machine.folder / "containerd"
        self._folder.mkdir()
        self._socket = self._folder / "containerd.sock"
        self.endpoint = f"unix://{self._socket}"

    def start_store(self) -> None:
        """Starts it without pods, and removes those of an earlier run, whose processes are gone."""
        self._start(is_store=True)
        for container in self._list("containers"):
            self._ctr("containers", "remove", container)

    def start(self) -> None:
        """Starts it with pods."""
        self._daemon.stop()
        # Pods of one node meet through the node (ptp, not bridge), as kube-proxy's rules are there.
        addresses = {
            "type": "host-local",
            "dataDir": str(self._folder / "addresses"),
            "ranges": [[{"subnet": POD_NETWORK}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": addresses}]}
        (self._folder / "pods.conflist").write_text(json.dumps(network))
        self._start(is_store=False)

    def images(self) -> list[str]:
        return self._list("images")

    def tag(self, image: str, name: str) -> None:
        self._ctr("images", "tag", "--force", image, name)

    def remove(self, image: str) -> None:
        self._ctr("images", "remove", image)

    def size(self, image: str) -> int:
        """Bytes of the image's layers, not compressed."""
        return sum(int(layer["size"]) for layer in self._manifest(image)["layers"])

    def layers(self, image: str) -> list[str]:
        """The digests of its layers."""
        return [layer["digest"] for layer in self._manifest(image)["layers"]]

    def config(self, image: str) -> dict[str, Any]:
        """What the image says of user, labels and entrypoint."""
        config = json.loads(self._ctr("content", "get", self._manifest(image)["config"]["digest"]))
        return dict(config["config"])

    def import_image(self, name: str, copy: Callable[[Path], None]) -> None:
        """Takes in an image that `copy` adds to an OCI layout.

        Layers of gigabytes are written once: those that are here are in the layout before, so that `copy` passes over
        them, and new ones become files of the store by a link.
        """
        store = self._root / "io.containerd.content.v1.content" / "blobs" / "sha256"
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root.parent) as folder:
            layout = Path(folder)
            blobs = layout / "blobs" / "sha256"
            blobs.mkdir(parents=True)
            for blob in store.iterdir():
                os.link(blob, blobs / blob.name)
            (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
            (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
            copy(layout)
            (descriptor,) = json.loads((layout / "index.json").read_text())["manifests"]
            manifest = blobs / descriptor["digest"].removeprefix("sha256:")
            content = json.loads(manifest.read_text())
            for layer in content["layers"]:
                file = blobs / layer["digest"].removeprefix("sha256:")
                if not (store / file.name).exists():
                    os.link(file, store / file.name)
                with file.open("rb") as data:
                    expected = ("--expected-digest", layer["digest"], "--expected-size", str(layer["size"]))
                    self._ctr("content", "ingest", *expected, layer["digest"], stdin=data.fileno())
            # An archive without layers: these are in the store.
            config = blobs / content["config"]["digest"].removeprefix("sha256:")
            archive = io.BytesIO()
            with tarfile.open(fileobj=archive, mode="w") as tar:
                for file in (layout / "oci-layout", config, manifest, layout / "index.json"):
                    tar.add(file, arcname=file.relative_to(layout))
        command = [*self._machine.command, *self._command(), "images", "import", "-"]
        done = subprocess.run(command, input=archive.getvalue(), capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"containerd refuses the image {name}: {done.stderr.decode()}")

    def _start(self, is_store: bool) -> None:
        config = self._folder / "config.toml"
        text = _CONFIG.format(
            root=self._root,
            folder=self._folder,
            socket=self._socket,
            disabled=f'"{_CRI}"' if is_store else "",
            collect_after="24h" if is_store else "100ms",  # the store must not collect what it is being given
            cri=_CRI,
            pause=self._pause,
            plugins=self._plugins,
        )
        config.write_text(text)
        self._daemon = self._machine.start("containerd", config=config)
        wait_until(self._answers, "containerd's answer", describe=self._daemon.read_log)

    def _answers(self) -> bool:
        self._daemon.check()
        try:
            self._ctr("version")
        except subprocess.CalledProcessError:
            return False
        return True

    def _manifest(self, image: str) -> dict[str, Any]:
        digests = dict(line.split()[:3:2] for line in self._ctr("images", "list").splitlines()[1:])
        return dict(json.loads(self._ctr("content", "get", digests[image])))

    def _list(self, kind: str) -> list[str]:
        return self._ctr(kind, "list", "--quiet").split()

    def _ctr(self, *arguments: str, stdin: int | None = None) -> str:
        return self._machine.run(*self._command(), *arguments, stdin=stdin)

    def _command(self) -> tuple[str, ...]:
        return "ctr", "--address", str(self._socket), "--namespace", "k8s.io"
