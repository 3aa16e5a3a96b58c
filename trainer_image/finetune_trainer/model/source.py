"""Where the model is loaded from: a hub id, a folder, or a GGUF file dequantised once into the cache."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError
from finetune_trainer.package_file import find_package_file


def locate_model(plan: TrainingPlan) -> str:
    """What ``from_pretrained`` takes: a hub id or a folder. Converts a GGUF file if that hasn't been done.

    Raises: InvalidInputError when there is no model at the source.
    """
    source = plan.model.source
    if source.kind == "hf":
        return source.location
    path = find_package_file(source) if source.kind == "package" else Path(source.location)
    if not path.exists():
        raise InvalidInputError(f"model.source {source.uri}: {path} does not exist")
    if path.suffix == ".gguf":
        return str(_converted(path, Path(plan.cache_directory) / "models"))
    if not (path / "config.json").exists():
        raise InvalidInputError(
            f"model.source {source.uri}: {path} is neither a .gguf file nor a model's folder (no config.json in it)"
        )
    return str(path)


def _converted(gguf: Path, cache: Path) -> Path:
    """Folder of the dequantised model. Its name changes with the file; it appears whole or not at all."""
    state = gguf.stat()
    identity = f"{gguf.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    folder = cache / f"{gguf.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
    try:
        place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        # float32 keeps every value that the blocks hold; the plan's dtype is applied when the folder is loaded.
        model = AutoModelForCausalLM.from_pretrained(
            **place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(building)
        AutoTokenizer.from_pretrained(**place).save_pretrained(building)
        try:
            os.rename(building, folder)
        except OSError:
            # Another process was faster; its folder is as good.
            if not folder.exists():
                raise
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InvalidInputError(f"model.source: {gguf.name} can't be converted from GGUF: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder
