"""Sources in S3: copied once into the cache, then files like any other."""

import hashlib
from pathlib import Path

from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.files import build_once
from finetune_trainer.s3 import blame
from finetune_trainer.store import Store


def fetch_source(source: ResolvedSource, plan: TrainingPlan, field: str) -> ResolvedSource:
    """A source in S3 as its copy in the plan's cache, any other as it is. ``field``: where it stands, for messages.

    Raises: InvalidInputError when there is nothing at the source, or the credentials don't open it; OSError when the server
    is away for too long.
    """
    if source.kind != "s3":
        return source
    with blame(field, source.uri):
        path = _copy(source, Path(plan.cache_directory) / "s3")
    return source.model_copy(update={"kind": "file", "location": str(path)})


def _copy(source: ResolvedSource, cache: Path) -> Path:
    """The copy of a file or folder. Its place changes with the names, sizes and times of the files."""
    bucket, _, key = source.location.rstrip("/").partition("/")
    store = Store(f"s3://{bucket}")
    found = store.find_files(key)
    if not found:
        raise FileNotFoundError(f"nothing is at {bucket}/{key}")
    state = [f"{info.path}|{info.size}|{info.mtime.timestamp()}" for info in found.values()]
    folder = cache / hashlib.sha256("\n".join(state).encode()).hexdigest()[:24]

    def build(building: Path) -> None:
        start = len(key) - len(Path(key).name)
        store.do_each(lambda path: store.download(path, building / path[start:]), found)

    build_once(folder, build)
    return folder / Path(key).name
