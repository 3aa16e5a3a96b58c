"""Datasets in S3: copied once into the cache, then files like any other."""

import hashlib
from pathlib import Path
from typing import Any

from finetune_api.plan import DatasetPlan, ResolvedSource, TrainingPlan
from finetune_trainer.data.cache import build_once
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.s3 import VARIABLES, connect_s3, is_refused


def fetch_sources(plan: TrainingPlan) -> TrainingPlan:
    """The plan with each dataset source in S3 replaced by its copy in the cache.

    Raises: InvalidInputError when there is nothing at the source, or the credentials don't open it.
    """
    cache, dataset = Path(plan.cache_directory) / "s3", plan.dataset
    changes: dict[str, Any] = {"source": _fetch(dataset.source, cache)}
    if dataset.validation_source is not None:
        changes["validation_source"] = _fetch(dataset.validation_source, cache)
    changes["mixtures"] = tuple(
        mixture.model_copy(update={"source": _fetch(mixture.source, cache)}) for mixture in dataset.mixtures
    )
    fetched: DatasetPlan = dataset.model_copy(update=changes)
    return plan.model_copy(update={"dataset": fetched})


def _fetch(source: ResolvedSource, cache: Path) -> ResolvedSource:
    if source.kind != "s3":
        return source
    try:
        path = _copy(source, cache)
    except OSError as error:
        if not is_refused(error):
            raise
        raise InvalidInputError(
            f"dataset {source.uri}: {str(error).splitlines()[0]}; it is looked for with the AWS_* variables of the "
            f"environment ({VARIABLES})"
        ) from error
    return source.model_copy(update={"kind": "file", "location": str(path)})


def _copy(source: ResolvedSource, cache: Path) -> Path:
    """The copy of a file or folder. Its place changes with the names, sizes and times of the files."""
    from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]

    remote = ArrowFSWrapper(connect_s3())
    location = source.location.rstrip("/")
    files = {location: remote.info(location)}
    if files[location]["type"] == "directory":
        files = remote.find(location, detail=True)
    if not files:
        raise FileNotFoundError(f"{location} is empty")
    state = [f"{name}|{info['size']}|{info['mtime']}" for name, info in sorted(files.items())]
    folder = cache / hashlib.sha256("\n".join(state).encode()).hexdigest()[:24]

    def build(building: Path) -> None:
        for name in files:
            target = building / Path(name).relative_to(Path(location).parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            remote.get_file(name, str(target))

    build_once(folder, build)
    return folder / Path(location).name
