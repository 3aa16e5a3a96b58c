"""Processes, mounts and a network apart from this machine's: all end with the first process there, however that ends."""

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.cluster.harness.waiting import wait_until

HOST_ADDRESS = "10.213.0.1"
ADDRESS = "10.213.0.2"
POD_NETWORK = "10.214.0.0/24"
CGROUP = "finetune-node"
_LINK = "finetune-node"
_CGROUPS = Path("/sys/fs/cgroup")


class Machine(contextlib.ExitStack):
    """`with Machine(folder) as machine:`; what is started in it logs to `folder`.

    machine.network   what a command starts with to have the network only
    machine.command   what a command starts with to be inside
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self)  # a start that fails half-way leaves nothing behind
            self._start()
            undo.pop_all()
        return self

    def _start(self) -> None:
        # The kernel ends everything inside when process 1 there dies, and that dies with this process.
        # tini: the shims of containers are left to process 1.
        command = "setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc tini -- sleep infinity"
        _remove_cgroups()  # those of a machine that nobody could clean up
        unshare = subprocess.Popen(command.split())
        self.callback(_remove_cgroups)
        self.callback(unshare.wait)
        self.callback(unshare.kill)
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        process = wait_until(lambda: children.read_text().strip(), "the machine's first process")
        self.network: tuple[str, ...] = ("nsenter", f"--net=/proc/{process}/ns/net")
        self.command: tuple[str, ...] = ("nsenter", "--target", process, "--net", "--mount", "--pid")
        wait_until(lambda: self.run("cat", "/proc/1/comm") == "tini\n", "the machine's first process")
        self._mount()
        self._connect(process)
        _make_cgroups()

    def run(self, *command: str, stdin: int | None = None) -> str:
        """Runs a command inside and returns what it printed; raises CalledProcessError (with stderr)."""
        done = subprocess.run([*self.command, *command], stdin=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done.stdout

    def start(self, program: str | Path, **flags: object) -> "Daemon":
        """Starts a program inside that ends with the machine, if not before."""
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        command = [*self.command, "setpriv", "--pdeathsig", "KILL", str(program), *arguments]
        log = self.folder / f"{Path(program).name}.log"
        with log.open("ab") as output:
            daemon = Daemon(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output), log)
        self.callback(daemon.stop)
        return daemon

    def _mount(self) -> None:
        """Shared mounts as a kubelet wants them, and folders of its own in the places that programs insist on."""
        self.run("mount", "--make-rshared", "/")
        (self.folder / "kubelet").mkdir()
        for path in ("/run/containerd", "/var/lib/kubelet"):
            Path(path).mkdir(parents=True, exist_ok=True)
        self.run("mount", "--bind", str(self.folder / "kubelet"), "/var/lib/kubelet")
        for path in ("/run/containerd", "/var/log"):
            self.run("mount", "-t", "tmpfs", "tmpfs", path)

    def _connect(self, process: str) -> None:
        """A link between this machine and that one; this machine reaches the pods through it."""

        def ip(arguments: str) -> None:
            subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)

        def ip_inside(arguments: str) -> None:
            self.run("ip", *arguments.split())

        # The kernel takes a moment to remove the link of a machine that has just ended.
        wait_until(lambda: not Path(f"/sys/class/net/{_LINK}").exists(), f"the end of another node's link {_LINK}")
        ip(f"link add {_LINK} type veth peer name eth0 netns {process}")
        ip(f"address add {HOST_ADDRESS}/30 dev {_LINK}")
        ip(f"link set {_LINK} up")
        ip_inside("link set lo up")
        ip_inside(f"address add {ADDRESS}/30 dev eth0")
        ip_inside("link set eth0 up")
        ip_inside(f"route add default via {HOST_ADDRESS}")
        ip(f"route add {POD_NETWORK} via {ADDRESS}")
        self.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")


class Daemon:
    """A program started in a machine."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def stop(self) -> None:
        """Kills it: all of it is thrown away."""
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raises RuntimeError with the end of its log when it has ended by itself."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._log.stem} ended; the end of its log:\n{self.read_log()}")

    def read_log(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-3000:]


def _cgroup_folders() -> list[Path]:
    """The folder of this node's cgroup in each hierarchy (in cgroup v2 there is one)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(mount[1], CGROUP) for mount in mounts if mount[2] in ("cgroup", "cgroup2")]


def _make_cgroups() -> None:
    for folder in _cgroup_folders():
        folder.mkdir(exist_ok=True)
        control = folder.parent / "cgroup.subtree_control"
        if control.exists():
            wanted = (folder.parent / "cgroup.controllers").read_text().split()
            control.write_text(" ".join(f"+{name}" for name in wanted))


def _remove_cgroups() -> None:
    """Removes what the pods leave behind, once the kernel has ended their processes."""
    deadline = time.monotonic() + 10
    for top in _cgroup_folders():
        for folder, _, _ in os.walk(top, topdown=False):
            while True:
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    break
                except OSError:  # its last process is still ending
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
                else:
                    break
