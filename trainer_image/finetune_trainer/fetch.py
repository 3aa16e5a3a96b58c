"""Sources in S3: copied once into the cache, then files like any other."""

import hashlib
from pathlib import Path
from typing import Any

from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.files import build_once
from finetune_trainer.s3 import VARIABLES, connect_s3, insist, is_refused
from finetune_trainer.store import Store


def fetch_source(source: ResolvedSource, plan: TrainingPlan, field: str) -> ResolvedSource:
    """A source in S3 as its copy in the plan's cache, any other as it is. ``field``: where it stands, for messages.

    Raises: InvalidInputError when there is nothing at the source, or the credentials don't open it; OSError when the server
    is away for too long.
    """
    if source.kind != "s3":
        return source
    try:
        path = _copy(source, Path(plan.cache_directory) / "s3")
    except OSError as error:
        if not is_refused(error):
            raise
        raise InvalidInputError(
            f"{field} {source.uri}: {str(error).splitlines()[0]}; it is looked for with the AWS_* variables of the "
            f"environment ({VARIABLES})"
        ) from error
    return source.model_copy(update={"kind": "file", "location": str(path)})


def _copy(source: ResolvedSource, cache: Path) -> Path:
    """The copy of a file or folder. Its place changes with the names, sizes and times of the files."""
    location = source.location.rstrip("/")
    found = insist(lambda: _list(location))
    state = [f"{info.path}|{info.size}|{info.mtime.timestamp()}" for info in found]
    folder = cache / hashlib.sha256("\n".join(state).encode()).hexdigest()[:24]

    def build(building: Path) -> None:
        bucket, start = location.split("/")[0], len(location) - len(Path(location).name)
        store = Store(f"s3://{bucket}")
        store.do_each(lambda info: store.download(info.path[len(bucket) + 1 :], building / info.path[start:]), found)

    build_once(folder, build)
    return folder / Path(location).name


def _list(location: str) -> list[Any]:
    """The file, or all files of the folder, by name."""
    from pyarrow import fs  # type: ignore[import-untyped]

    remote = connect_s3()
    files = [remote.get_file_info(location)]
    if files[0].type is fs.FileType.Directory:
        files = [info for info in remote.get_file_info(fs.FileSelector(location, recursive=True)) if info.is_file]
    if not files or files[0].type is fs.FileType.NotFound:
        raise FileNotFoundError(f"nothing is at {location}")
    return sorted(files, key=lambda info: info.path)
