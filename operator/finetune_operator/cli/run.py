"""``finetune run``"""

import ctypes
import fcntl
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Result
from finetune_operator.cli.errors import CommandError, UsageError
from finetune_operator.cli.inputs import read_jobs, read_settings
from finetune_operator.cli.local import LocalRun, build_layout, build_local_run
from finetune_operator.cli.output import open_stderr, open_stdout
from finetune_operator.cli.summary import print_summary

_NEEDED = ("finetune_trainer", "torch", "transformers", "trl", "peft", "datasets", "accelerate")


def run_file(file: Path, output_dir: Path | None, claims: list[str], settings_file: Path | None) -> int:
    """The trainer's exit status."""
    folders = parse_claims(claims)
    settings, found = read_settings(settings_file), read_jobs(file)
    if len(found.jobs) != 1:
        raise CommandError(f"{file} holds {len(found.jobs)} FineTuneJobs; `run` takes a file with one")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise CommandError(
            f"the trainer is not installed here ({', '.join(missing)} missing): install finetune-operator[trainer]"
        )
    ((job, _),) = found.jobs
    config_maps = {
        str(each.get("metadata", {}).get("name")): each for each in found.others if each.get("kind") == "ConfigMap"
    }
    layout = build_layout(job, output_dir, find_cache(), folders)
    taken = _find_taken(job.spec.observability.metrics_port)
    local = build_local_run(job, settings, layout, config_maps, os.environ, taken)
    with _lock(Path(layout.root)) as lock:
        for path, content in local.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for remark in local.remarks:
            open_stderr().print(f"note: {remark}", markup=False)
        status = _run(local, lock)
    if status in (ExitCode.OK, ExitCode.GATE_FAILED):
        print_summary(_read_result(local), open_stdout())
    elif status == ExitCode.PREEMPTED:
        open_stderr().print("stopped; the same command goes on from the last checkpoint", markup=False)
    return status


def _find_taken(port: int) -> set[int]:
    """The port, if another process of this machine listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return {port}
    return set()


def parse_claims(claims: list[str]) -> dict[str, Path]:
    """NAME=DIR -> folder by claim. Raises UsageError."""
    folders = {}
    for claim in claims:
        name, separator, folder = claim.partition("=")
        if not (name and separator and folder):
            raise UsageError(f"--claim {claim}: write NAME=DIR, such as --claim data=./data")
        if not Path(folder).is_dir():
            raise UsageError(f"--claim {claim}: {folder} is no folder")
        folders[name] = Path(folder)
    return folders


def find_cache() -> Path:
    """The person's cache of models and prepared data."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FINETUNE_CACHE") or home / "finetune-operator")


@contextmanager
def _lock(root: Path) -> Iterator[IO[str]]:
    """One run at a time in a folder. The trainer holds the lock too, so it outlives a killed command."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            open_stderr().print(f"another run works in {root}: waiting for its end", markup=False)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _run(local: LocalRun, lock: IO[str]) -> int:
    """Runs the trainer in a process group of its own, so that each signal reaches it once: from here."""
    process = subprocess.Popen(
        local.command, env=local.environment, stdin=subprocess.DEVNULL, process_group=0, pass_fds=[lock.fileno()], preexec_fn=_end_with_parent
    )  # fmt: skip
    forwarded = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in forwarded}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _end_with_parent() -> None:
    """On Linux the trainer is told to stop (and saves a checkpoint) when this command is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _read_result(local: LocalRun) -> Result:
    path = Path(local.plan.output.directory) / "result.json"
    try:
        return Result.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise CommandError(f"the trainer ended well, but {path} can't be read: {error}") from None
