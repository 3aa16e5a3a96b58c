"""Where what a run makes is kept: a folder that every node sees, or a prefix in a bucket of S3."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.checkpoint.marker import FileRecord
from finetune_trainer.files import sync_path
from finetune_trainer.s3 import PATIENCE, connect_s3, insist

T = TypeVar("T")
Item = TypeVar("Item")

_CHUNK = 8 * 2**20
_STREAMS = 8
"""Files that are under way at a time: one stream of S3 is a fraction of a node's network."""


class Store:
    """Files by their path below ``uri``. All methods raise OSError; those of S3 wait for a server that is away, for so many
    seconds of ``patience``."""

    def __init__(self, uri: str, patience: float = PATIENCE) -> None:
        from pyarrow import fs  # type: ignore[import-untyped]

        self.uri = uri.rstrip("/")
        self._patience = patience
        self._is_remote = uri.startswith("s3://")
        self._root = self.uri.removeprefix("s3://")
        self._system: Any = insist(connect_s3, patience) if self._is_remote else fs.LocalFileSystem()

    def list_folders(self) -> list[str]:
        """Names of the folders directly in it."""
        from pyarrow import fs

        found = self._do(lambda: self._system.get_file_info(fs.FileSelector(self._root, allow_not_found=True)))
        return [info.base_name for info in found if info.type is fs.FileType.Directory]

    def find_files(self, path: str) -> dict[str, Any]:
        """pyarrow's FileInfo of the file, or of all files of the folder, by their paths, in order; none where nothing is."""
        from pyarrow import fs

        def find() -> list[Any]:
            found = self._system.get_file_info(self._at(path))
            if found.type is not fs.FileType.Directory:
                return [found]
            below = fs.FileSelector(self._at(path), allow_not_found=True, recursive=True)
            return list(self._system.get_file_info(below))

        start = len(self._at(""))
        files = {info.path[start:]: info for info in self._do(find) if info.is_file}
        return dict(sorted(files.items()))

    def read(self, path: str) -> bytes | None:
        """A small file's content; None without one."""

        def read() -> bytes | None:
            try:
                with self._system.open_input_file(self._at(path)) as file:
                    content: bytes = file.read()
                    return content
            except FileNotFoundError:
                return None

        return self._do(read)

    def write(self, path: str, content: bytes) -> None:
        """A small file, whole or not at all."""

        def write() -> None:
            target = self._at(path) if self._is_remote else f"{self._at(path)}.partial"
            with self._system.open_output_stream(target) as file:
                file.write(content)
            if not self._is_remote:
                sync_path(Path(target))
                os.replace(target, self._at(path))
                sync_path(Path(target).parent)

        self._do(write)

    def upload(self, file: Path, path: str) -> FileRecord:
        """Put a file there, on the disk of a folder."""

        def copy() -> FileRecord:
            self._make_parent(path)
            with file.open("rb") as source, self._system.open_output_stream(self._at(path)) as target:
                record = _copy(source, target, path)
            if not self._is_remote:
                sync_path(Path(self._at(path)))
            return record

        return self._do(copy)

    def download(self, path: str, file: Path) -> FileRecord:
        """Fetch a file."""

        def copy() -> FileRecord:
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._system.open_input_stream(self._at(path)) as source, file.open("wb") as target:
                return _copy(source, target, path)

        return self._do(copy)

    def inspect(self, path: str) -> FileRecord:
        """Size and hash of a file, which is read whole."""

        def read() -> FileRecord:
            with self._system.open_input_stream(self._at(path)) as source:
                return _copy(source, None, path)

        return self._do(read)

    def remove(self, name: str) -> None:
        """Remove a folder."""

        def remove() -> None:
            try:
                self._system.delete_dir(self._at(name))
            except FileNotFoundError:
                return

        self._do(remove)

    def do_each(self, action: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """``action`` of each, in their order; in S3 some at a time. When one fails, or a signal comes, those under way aren't
        waited for."""
        if not self._is_remote:
            # More threads than one would be in the way of a training that goes on meanwhile.
            return [action(item) for item in items]
        pool = ThreadPoolExecutor(_STREAMS, "store")
        try:
            return list(pool.map(action, items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _do(self, action: Callable[[], T]) -> T:
        # What a folder refuses it refuses again.
        return insist(action, self._patience) if self._is_remote else action()

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_parent(self, path: str) -> None:
        if not self._is_remote:
            Path(self._at(path)).parent.mkdir(parents=True, exist_ok=True)


def _copy(source: Any, target: Any, path: str) -> FileRecord:
    """Copy (to None: only read) and measure."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if target is not None:
            target.write(chunk)
    return FileRecord(path=path, size=size, sha256=digest.hexdigest())
