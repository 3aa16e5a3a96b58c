"""Datasets in S3: copied once into the cache, then files like any other."""

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune_api.plan import DatasetPlan, ResolvedSource, TrainingPlan
from finetune_trainer.data.cache import build_once
from finetune_trainer.errors import InvalidInputError

_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "NO_SUCH_BUCKET", "NO_SUCH_KEY")
"""Errors of AWS's client that another try doesn't mend."""


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
        if not isinstance(error, FileNotFoundError) and not any(refusal in str(error) for refusal in _REFUSALS):
            raise
        raise InvalidInputError(
            f"dataset {source.uri}: {str(error).splitlines()[0]}; it is looked for with the AWS_* variables of the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL)"
        ) from error
    return source.model_copy(update={"kind": "file", "location": str(path)})


def _copy(source: ResolvedSource, cache: Path) -> Path:
    """The copy of a file or folder. Its place changes with the names, sizes and times of the files."""
    from fsspec.implementations.arrow import ArrowFSWrapper  # type: ignore[import-untyped]

    remote = ArrowFSWrapper(_connect())
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


def _connect() -> Any:
    """AWS's client, set up by the environment; it reads the credentials itself."""
    from pyarrow.fs import S3FileSystem  # type: ignore[import-untyped]

    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    options = {"region": region} if region else {}
    if endpoint:
        parts = urlsplit(endpoint)
        options.update(endpoint_override=parts.netloc, scheme=parts.scheme)
    return S3FileSystem(**options)
