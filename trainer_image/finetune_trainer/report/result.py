"""result.json: written once all is done, read to see that all is done."""

import importlib.metadata
from pathlib import Path

from pydantic import ValidationError

from finetune_api.plan import TrainingPlan
from finetune_api.progress import Result
from finetune_trainer.files import hash_folder, write_atomically

RESULT_NAME = "result.json"


def write_result(plan: TrainingPlan, result: Result) -> None:
    """Replace the output folder's result."""
    write_atomically(Path(plan.output.directory) / RESULT_NAME, result.model_dump_json(by_alias=True, indent=2) + "\n")


def read_finished(plan: TrainingPlan) -> Result | None:
    """The result of this very run when it is finished and its artifacts lie there unchanged, else None."""
    path = Path(plan.output.directory) / RESULT_NAME
    if not path.exists():
        return None
    try:
        result = Result.model_validate_json(path.read_bytes())
    except ValidationError:
        return None
    if result.run_id != plan.job.run_id or {record.type for record in result.artifacts} != set(plan.output.artifacts):
        return None
    for record in result.artifacts:
        folder = Path(record.path)
        if not folder.is_dir() or hash_folder(folder) != record.sha256:
            return None
    return result


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
