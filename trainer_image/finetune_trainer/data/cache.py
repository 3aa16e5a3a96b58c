"""Prepared rows are kept by their content: the same rows, tokenizer and settings are encoded once in a cache."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.plan import ResolvedSource, TrainingPlan
from finetune_trainer.data.sources import hash_source
from finetune_trainer.files import hash_folder

_VERSION = 1
"""Raised when the same content is to give other prepared rows."""


def name_content(plan: TrainingPlan, tokenizer: Any, positions: int | None) -> str:
    """Name of the folder for these rows: a hash of all that decides them."""
    decisive = {
        "version": _VERSION,
        "dataset": plan.dataset.model_dump(mode="json"),
        "positions": positions,
        "objective": [plan.objective.type, plan.objective.response_only],
        "generation": plan.objective.generation and plan.objective.generation.max_tokens,
        "max_length": plan.training.max_length,
        "seed": plan.training.seed,
        "tokenizer": _hash_tokenizer(tokenizer),
        "sources": [hash_source(source, split) for source, split in _list_sources(plan)],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:24]


def _list_sources(plan: TrainingPlan) -> Iterator[tuple[ResolvedSource, str]]:
    yield plan.dataset.source, plan.dataset.split
    if plan.dataset.validation_source is not None:
        yield plan.dataset.validation_source, plan.dataset.split
    yield from ((mixture.source, mixture.split) for mixture in plan.dataset.mixtures)


def _hash_tokenizer(tokenizer: Any) -> str:
    """Of its files with the chat template, as it would be saved."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return hash_folder(Path(folder))
