"""The trainer's processes in a pod, from outside: all of them are this machine's."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.cluster.harness.api import Object
from tests.node.harness.machine import CGROUP


def find_trainers(pod: Object) -> Iterator[psutil.Process]:
    """Launcher and ranks, or the one process that is both."""
    for folder in Path("/sys/fs/cgroup").rglob(f"{CGROUP}/**/*{pod['metadata']['uid']}*"):
        for processes in folder.glob("*/cgroup.procs"):
            for process in map(psutil.Process, map(int, processes.read_text().split())):
                if "finetune_trainer" in process.cmdline():
                    yield process


def kill_trainer(pod: Object) -> None:
    """SIGKILL to each of them, as when a machine is reset; no warning, no last words."""
    processes = list(find_trainers(pod))
    assert processes, f"no trainer's process in pod {pod['metadata']['name']}"
    for process in processes:
        process.kill()


def is_told_to_stop(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for a process that stands still."""
    pending = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "ShdPnd" in line)
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))
