"""The trainer's processes in a pod, from outside: all of them are this machine's."""

import signal
from pathlib import Path

import psutil

from tests.cluster.harness.api import Object
from tests.node.harness.machine import CGROUP


def find_trainers(pod: Object) -> set[psutil.Process]:
    """Launcher and ranks, or the one process that is both."""
    groups = Path("/sys/fs/cgroup").rglob(f"{CGROUP}/**/*{pod['metadata']['uid']}*/**/cgroup.procs")
    numbers = {int(number) for group in groups for number in group.read_text().split()}
    return {process for process in map(psutil.Process, numbers) if "finetune_trainer" in process.cmdline()}


def kill_trainer(pod: Object) -> None:
    """SIGKILL to each of them, as when a machine is reset; no warning, no last words."""
    processes = find_trainers(pod)
    assert processes, f"no trainer's process in pod {pod['metadata']['name']}"
    for process in processes:
        process.kill()


def is_told_to_stop(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for a process that stands still."""
    pending = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "ShdPnd" in line)
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))
