"""result.json: written once all is done, read to see that all is done.

Where the output is brought to S3 it lies there too, written last of all: whoever finds it finds the artifacts.
"""

import importlib.metadata
from pathlib import Path

from pydantic import ValidationError

from finetune_api.plan import TrainingPlan
from finetune_api.progress import ArtifactRecord, Result
from finetune_trainer.files import hash_folder, write_atomically
from finetune_trainer.store import Store

RESULT_NAME = "result.json"


def write_result(plan: TrainingPlan, result: Result) -> None:
    """Replace the output folder's result, and that at its destination. Raises: OSError."""
    text = result.model_dump_json(by_alias=True, indent=2) + "\n"
    write_atomically(Path(plan.output.directory) / RESULT_NAME, text)
    if plan.output.destination is not None:
        Store(plan.output.destination).write(RESULT_NAME, text.encode())


def read_finished(plan: TrainingPlan) -> Result | None:
    """The result of this very run when it is finished and its artifacts lie where they were brought, else None.

    Raises: OSError when the destination can't be read.
    """
    path = Path(plan.output.directory) / RESULT_NAME
    destination = plan.output.destination
    store = Store(destination) if destination is not None else None
    content = store.read(RESULT_NAME) if store is not None else path.read_bytes() if path.exists() else None
    result = _parse(content, plan)
    if result is None:
        return None
    if store is None:
        return result if all(is_intact(record) for record in result.artifacts) else None
    if any(
        sum(info.size for info in store.find_files(record.type).values()) != record.bytes for record in result.artifacts
    ):
        return None
    write_atomically(path, result.model_dump_json(by_alias=True, indent=2) + "\n")
    return result


def is_intact(artifact: ArtifactRecord) -> bool:
    """Whether it lies in the output folder as it was exported."""
    folder = Path(artifact.path)
    return folder.is_dir() and hash_folder(folder) == artifact.sha256


def _parse(content: bytes | None, plan: TrainingPlan) -> Result | None:
    """The result if it is one of this very run."""
    if content is None:
        return None
    try:
        result = Result.model_validate_json(content)
    except ValidationError:
        return None
    asked = set(plan.output.artifacts)
    return result if result.run_id == plan.job.run_id and {each.type for each in result.artifacts} == asked else None


def read_versions() -> dict[str, str]:
    """Versions of what decides the result."""
    packages = {"trainer": "finetune-operator"} | {
        name: name for name in ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
    }
    versions = {}
    for name, package in packages.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Run from a checkout that isn't installed.
            versions[name] = "unknown"
    return versions
