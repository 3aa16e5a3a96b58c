"""Runs one command as a container would see the machine. A script of its own: `python sandbox.py SPEC.json`.

The command is process 1 of a new process namespace (as in a container: it gets only the signals that it handles, and
its children die with it) in a new mount namespace. The root there is made of this machine's own files, with the mounts
of SPEC laid over it; mount points that this machine lacks are made in that root only. Without root, a user namespace
gives the right to do so where the machine allows one.

SPEC: {"argv", "env", "cwd", "root": an empty folder, "read_only_root",
       "mounts": [{"target", "source": file or folder | "tmpfs_bytes": size (0: no limit), "read_only"}]}
SIGTERM is passed on. Exit status: the command's; 128 + n when signal n ended it, as container runtimes report it;
START_ERROR, with the reason on stderr, when it could not be started.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

START_ERROR = 128  # what containerd reports for a command that can't be started

_libc = ctypes.CDLL(None, use_errno=True)
# From linux/mount.h, linux/sched.h and linux/prctl.h.
_MS_BIND, _MS_REC, _MS_UNBINDABLE, _MS_PRIVATE = 0x1000, 0x4000, 0x20000, 0x40000
_NEWNS, _NEWUSER, _NEWPID = 0x20000, 0x10000000, 0x20000000
_PR_SET_PDEATHSIG = 1
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1


def run(spec: dict[str, Any]) -> int:
    """The exit status of the command."""
    _call(_libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)  # when the kubelet dies, so does the container
    user, group = os.geteuid(), os.getegid()
    _call(_libc.unshare, _NEWNS | _NEWPID | (_NEWUSER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child == 0:
        _exec(spec)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def _exec(spec: dict[str, Any]) -> None:
    try:
        _call(_libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)
        _make_root(spec["root"], spec["mounts"], spec["cwd"], spec["read_only_root"])
        os.chroot(spec["root"])
        os.chdir(spec["cwd"])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        print(f"can't start {spec['argv'][0]}: {error}", file=sys.stderr, flush=True)
        os._exit(START_ERROR)


def _make_root(root: str, mounts: list[dict[str, Any]], cwd: str, read_only: bool) -> None:
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs")
    _mount(None, root, None, _MS_UNBINDABLE)  # it lies in one of the folders that it will hold
    mounts = sorted(({**each, "target": _resolve(each["target"])} for each in mounts), key=lambda each: each["target"])
    wanted = [each["target"] for each in mounts] + [_resolve(cwd)]
    # The machine's own folder can't take a new mount point: what lies above one is rebuilt, entry by entry.
    rebuilt = {str(parent) for path in wanted if not os.path.exists(path) for parent in Path(path).parents}
    _bind_entries("/", root, rebuilt)
    for each in mounts:
        _make_mount_point(each, root)
    os.makedirs(root + _resolve(cwd), exist_ok=True)
    if read_only:
        _set_read_only(root, _AT_RECURSIVE)
    _mount("proc", f"{root}/proc", "proc")
    for each in mounts:
        _make_mount_point(each, root)  # again: it may lie in a volume that was mounted just now
        if "source" in each:
            _mount(each["source"], root + each["target"], None, _MS_BIND | _MS_REC)
        else:
            _mount("tmpfs", root + each["target"], "tmpfs", data=f"mode=1777,size={each['tmpfs_bytes']}")
    for each in mounts:
        if each["read_only"]:
            _set_read_only(root + each["target"])


def _bind_entries(folder: str, root: str, rebuilt: set[str]) -> None:
    for entry in os.scandir(folder):
        inside = root + entry.path
        # In a busy folder such as /tmp an entry may be gone by now.
        with contextlib.suppress(FileNotFoundError):
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), inside)
            elif entry.path in rebuilt:
                os.mkdir(inside)
                _bind_entries(entry.path, root, rebuilt)
            elif entry.path == "/proc":
                os.mkdir(inside)
            else:
                _make_mount_point({"source": entry.path, "target": entry.path}, root)
                _mount(entry.path, inside, None, _MS_BIND | _MS_REC)


def _make_mount_point(mount: dict[str, Any], root: str) -> None:
    inside = Path(root + mount["target"])
    if inside.exists():
        return
    if "source" in mount and not os.path.isdir(mount["source"]):
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.touch()
    else:
        inside.mkdir(parents=True, exist_ok=True)


def _resolve(path: str) -> str:
    """The path without symbolic links above its last part, such as /var/run."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _mount(source: str | None, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind)]
    _call(_libc.mount, *arguments, ctypes.c_ulong(flags), None if data is None else data.encode())


def _set_read_only(target: str, flags: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY)  # struct mount_attr: set, clear, propagation, userns
    _call(_libc.syscall, _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), flags, attributes, ctypes.sizeof(attributes))


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}{arguments}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        status = run(json.loads(Path(sys.argv[1]).read_text()))
    except OSError as error:  # no right to make namespaces
        print(error, file=sys.stderr)
        status = START_ERROR
    sys.exit(status)
