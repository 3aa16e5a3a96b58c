"""Exports the adapter, the merged model and its GGUF file, verifies them from disk, and publishes them by a rename."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_api.methods import METHODS
from finetune_api.plan import Artifact, TrainingPlan
from finetune_api.progress import ArtifactRecord
from finetune_trainer.export.gguf import verify_gguf, write_gguf
from finetune_trainer.export.merge import dequantise_base, save_adapter
from finetune_trainer.export.verify import compare_logits, compute_logits, reload_adapter, reload_merged
from finetune_trainer.files import hash_folder, list_files, sync_folder


@dataclass
class _Built:
    """A finished artifact in its temporary folder, and the logits that it has to reproduce."""

    folder: Path
    expected: list[torch.Tensor]


def export_artifacts(
    plan: TrainingPlan, model: Any, tokenizer: Any, location: str, rows: list[list[int]]
) -> tuple[ArtifactRecord, ...]:
    """Write the plan's artifacts. ``model`` is used up: merging changes it, and its memory is freed for the reloads.

    ``location``: where the base model was loaded from. ``rows``: token ids to compare logits on.

    Raises: ArtifactMismatchError when a reloaded artifact isn't the trained model.
    """
    output = Path(plan.output.directory)
    output.mkdir(parents=True, exist_ok=True)
    with _workspace(output) as workspace:
        device = next(model.parameters()).device
        built = _build(plan, model, tokenizer, rows, workspace)
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        differences: dict[Artifact, float] = {}
        if plan.output.verify:
            for name, artifact in built.items():
                differences[name] = _verify(plan, name, artifact, location, rows, device)
                gc.collect()
        return tuple(
            _publish(name, built[name].folder, output / name, differences.get(name)) for name in plan.output.artifacts
        )


@contextmanager
def _workspace(output: Path) -> Iterator[Path]:
    """A folder beside the artifacts, on the same file system; what a killed export left is removed first."""
    for leftover in output.glob(".export-*"):
        shutil.rmtree(leftover)
    workspace = Path(tempfile.mkdtemp(prefix=".export-", dir=output))
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _build(
    plan: TrainingPlan, model: Any, tokenizer: Any, rows: list[list[int]], workspace: Path
) -> dict[Artifact, _Built]:
    built: dict[Artifact, _Built] = {}
    dtype = getattr(torch, plan.model.dtype)
    model.eval()
    expected = compute_logits(model, rows)
    if METHODS[plan.method.type].adapter:
        adapter = workspace / "adapter"
        save_adapter(plan, model, adapter)
        tokenizer.save_pretrained(adapter)
        built["adapter"] = _Built(adapter, expected)
        if not {"merged", "gguf"}.intersection(plan.output.artifacts):
            return built
        if plan.method.quantization is not None:
            model = dequantise_base(model, adapter)
            expected = compute_logits(model, rows)
        model = model.merge_and_unload(safe_merge=True)
    merged = workspace / "merged"
    model.config.use_cache = True
    model.to(dtype).save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    built["merged"] = _Built(merged, expected)
    if "gguf" in plan.output.artifacts:
        write_gguf(merged, workspace / "gguf", plan.output.gguf_type)
        built["gguf"] = _Built(workspace / "gguf", expected)
    return built


def _verify(
    plan: TrainingPlan, name: Artifact, built: _Built, location: str, rows: list[list[int]], device: torch.device
) -> float:
    """How far the reloaded artifact is from the trained model. Raises: ArtifactMismatchError."""
    match name:
        case "adapter":
            reloaded = reload_adapter(plan, location, built.folder, device)
        case "merged":
            reloaded = reload_merged(plan, built.folder, device)
        case "gguf":
            return verify_gguf(built.folder, built.folder.with_name("merged"), plan.output.gguf_type, rows, device)
    return compare_logits(plan, name, built.expected, compute_logits(reloaded, rows))


def _publish(name: Artifact, folder: Path, target: Path, difference: float | None) -> ArtifactRecord:
    sync_folder(folder)
    if target.exists():
        shutil.rmtree(target)
    os.rename(folder, target)
    os.chmod(target, 0o755)
    size = sum(path.stat().st_size for path in list_files(target))
    return ArtifactRecord(type=name, path=str(target), bytes=size, sha256=hash_folder(target), difference=difference)
