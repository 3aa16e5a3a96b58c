"""Prepares rows in the test's own process."""

import json
from pathlib import Path
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.data.prepare import PreparedData, load_data, prepare_data

Messages = list[tuple[str, str]]
"""Events that were told: name, message."""


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare(plan: TrainingPlan, tokenizer: Any) -> tuple[PreparedData, Messages]:
    """The rows of the plan, and what was told about them."""
    told: Messages = []

    def tell(event: str, text: str) -> None:
        told.append((event, text))

    name = prepare_data(plan, plan.model.source.location, tokenizer, tell)
    return load_data(plan, name, tokenizer, tell), told


def prepared_folders(plan: TrainingPlan) -> list[Path]:
    """What stands in the plan's cache of prepared rows."""
    return sorted((Path(plan.cache_directory) / "datasets").iterdir())


def read_report(plan: TrainingPlan) -> dict[str, Any]:
    """The report beside the only prepared rows."""
    [folder] = prepared_folders(plan)
    return json.loads((folder / "report.json").read_text())
