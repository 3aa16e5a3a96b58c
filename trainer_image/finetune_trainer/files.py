"""Files on disk that are whole or not there: hashes, fsync, atomic writes."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[Path]:
    """All files below ``folder``, sorted by their path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def hash_folder(folder: Path) -> str:
    """sha256 of the sorted lines ``<sha256>  <relative path>``, one for each file."""
    lines = [f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in list_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sync_path(path: Path) -> None:
    """Put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Put all files of ``folder``, its folders and its own entry on the disk."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        sync_path(path)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: a reader, or a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_path(path.parent)


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Let ``build`` fill ``folder`` unless it is there. It appears whole or not at all; of several processes that build
    at once the first one's stays."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(building)
        sync_folder(building)
        try:
            os.rename(building, folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
