"""How a test kubelet runs containers: as real processes, or only in its imagination."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.cluster.harness import sandbox
from tests.cluster.harness.api import Object
from tests.cluster.harness.pod_resolver import PodResolver, expand

_REPOSITORY = Path(__file__).parents[3]
_LOG_MESSAGE_BYTES = 2048
_DEFAULT_SHM_BYTES = 64 * 2**20  # what container runtimes give a pod that mounts nothing on /dev/shm


class Container(Protocol):
    """A started container."""

    def wait(self) -> int:
        """Blocks until it ended; the exit code."""

    def terminate(self) -> None:
        """Asks it to end (SIGTERM)."""

    def kill(self) -> None:
        """Ends it (SIGKILL)."""

    def read_message(self) -> str:
        """Its termination message."""


class Runtime(Protocol):
    """Starts containers."""

    def start(self, pod: Object, container: Object, resolver: PodResolver, folder: Path, log: Path) -> Container:
        """Raises ContainerConfigError while something that it refers to is missing."""


class ProcessRuntime:
    """Runs the container's real command as a process of this machine; see sandbox.py for what it sees.

    There is no image. Instead: this machine's files; `entrypoint` for a container without a command; `python` for a
    command's first word "python"; the variables of `env`; and `paths`, which stay visible under any volume.
    Not honoured: runAsUser, capabilities, resource limits, and pods' networks (all are on this machine's loopback).
    """

    def __init__(
        self,
        python: str = sys.executable,
        entrypoint: Sequence[str] = (),
        env: dict[str, str] | None = None,
        paths: Iterable[str | Path] = (_REPOSITORY, sys.prefix, sys.base_prefix),
    ) -> None:
        path = f"{Path(python).parent}:/usr/local/bin:/usr/bin:/bin"
        self._env = {"PATH": path, "HOME": "/tmp", "LANG": "C.UTF-8"} | (env or {})
        self._python, self._entrypoint, self._paths = python, list(entrypoint), [str(path) for path in paths]

    def start(self, pod: Object, container: Object, resolver: PodResolver, folder: Path, log: Path) -> Container:
        env = resolver.resolve_environment(container, self._env)
        mounts = resolver.resolve_mounts(container)
        volumes = tuple(mount["target"] + "/" for mount in mounts)
        mounts += [
            {"target": path, "source": path, "read_only": True} for path in self._paths if path.startswith(volumes)
        ]
        if "/dev/shm" not in [mount["target"] for mount in mounts]:
            mounts.append({"target": "/dev/shm", "tmpfs_bytes": _DEFAULT_SHM_BYTES, "read_only": False})
        message = folder / f"{container['name']}.message"
        message.write_text("")
        mounts.append({"target": container["terminationMessagePath"], "source": str(message), "read_only": False})
        words = [*container.get("command", self._entrypoint), *container.get("args", ())]
        argv = [expand(word, env) for word in words] or ["no command, no entrypoint"]
        root = folder / f"{container['name']}.root"
        root.mkdir(exist_ok=True)
        spec = folder / f"{container['name']}.json"
        security = container.get("securityContext", {})
        content = {
            "argv": [self._python if argv[0] == "python" else argv[0], *argv[1:]],
            "env": env,
            "cwd": container.get("workingDir", "/"),
            "root": str(root),
            "read_only_root": security.get("readOnlyRootFilesystem", False),
            "mounts": mounts,
        }
        spec.touch(mode=0o600)  # env holds Secrets
        spec.write_text(json.dumps(content))
        command = [sys.executable, "-I", "-S", sandbox.__file__, str(spec)]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        return _Process(process, container, message, log)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], container: Object, message: Path, log: Path) -> None:
        self._process, self._container, self._message, self._log = process, container, message, log
        self.terminate, self.kill = process.terminate, process.kill

    def wait(self) -> int:
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def read_message(self) -> str:
        from_log = self._container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        message = self._message.read_text(errors="replace")[:4096]
        failed = self._process.returncode != 0
        if not message and failed and (from_log or self._process.returncode == sandbox.START_ERROR):
            return self._log.read_text(errors="replace")[-_LOG_MESSAGE_BYTES:]
        return message


class Life(NamedTuple):
    """What becomes of a scripted pod: how long it runs, and how it ends, by itself or when asked to."""

    seconds: float = 0.3
    exit_code: int = 0
    message: str = ""
    exit_code_on_sigterm: int = 143


class ScriptedRuntime:
    """Runs nothing: each container "runs" as `script(pod)` says, a Life or a tuple that begins like one.

    A fake for load and chaos tests, where hundreds of processes would be too many.
    """

    def __init__(self, script: Callable[[Object], Sequence[object]] = lambda pod: Life()) -> None:
        self._script = script

    def start(self, pod: Object, container: Object, resolver: PodResolver, folder: Path, log: Path) -> Container:
        return _Scripted(Life(*self._script(pod)))  # type: ignore[arg-type]


class _Scripted:
    def __init__(self, life: Life) -> None:
        self._life = life
        self._signalled = threading.Event()
        self._exit_code = life.exit_code

    def wait(self) -> int:
        self._signalled.wait(self._life.seconds)
        return self._exit_code

    def terminate(self) -> None:
        self._signal(self._life.exit_code_on_sigterm)

    def kill(self) -> None:
        self._signal(137)

    def read_message(self) -> str:
        return self._life.message

    def _signal(self, exit_code: int) -> None:
        if not self._signalled.is_set():
            self._exit_code = exit_code
            self._signalled.set()
