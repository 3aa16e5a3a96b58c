"""Where the model is loaded from: a hub id, a folder, which may be a copy of one in S3, or a GGUF file dequantised once."""

import hashlib
from functools import partial
from pathlib import Path

from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.fetch import fetch_source
from finetune_trainer.files import build_once
from finetune_trainer.package_file import find_package_file


def locate_model(plan: TrainingPlan) -> str:
    """What ``from_pretrained`` takes: a hub id or a folder. Converts a GGUF file if that hasn't been done.

    Raises: InvalidInputError when there is no model at the source; OSError when its server is away for too long.
    """
    source = plan.model.source
    if source.kind == "hf":
        return source.location
    path = Path(locate_source(source, plan, "model.source"))
    if not path.exists():
        raise InvalidInputError(f"model.source {source.uri}: {path} does not exist")
    if path.suffix == ".gguf":
        return str(_converted(path, Path(plan.cache_directory) / "models"))
    if not (path / "config.json").exists():
        raise InvalidInputError(
            f"model.source {source.uri}: {path} is neither a .gguf file nor a model's folder (no config.json in it)"
        )
    return str(path)


def locate_source(source: ResolvedSource, plan: TrainingPlan, field: str) -> str:
    """A hub id, or the path of what lies at the source; what is in S3 is copied to the cache once. ``field``: for messages.

    Raises: InvalidInputError, OSError.
    """
    return str(find_package_file(source)) if source.kind == "package" else fetch_source(source, plan, field).location


def _converted(gguf: Path, cache: Path) -> Path:
    """Folder of the dequantised model. Its name changes with the file."""
    state = gguf.stat()
    identity = f"{gguf.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    folder = cache / f"{gguf.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    try:
        build_once(folder, partial(_convert, gguf))
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InvalidInputError(f"model.source: {gguf.name} can't be converted from GGUF: {error}") from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # float32 keeps every value that the blocks hold; the plan's dtype is applied when the folder is loaded.
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
