"""What the base model was asked before training, kept beside the checkpoints: a resumed run has no base model to ask."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.plan import TrainingPlan
from finetune_trainer.files import write_atomically


def keep(plan: TrainingPlan, name: str, asked: dict[str, Any], answer: Callable[[], Any]) -> Any:
    """The answers in the file ``name`` when this run ``asked`` the same there, else those of ``answer``, then kept."""
    path = Path(plan.checkpoint.folder) / name
    asked = {"runId": plan.job.run_id, **asked}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return kept["answers"]
    answers = answer()
    write_atomically(path, json.dumps({"asked": asked, "answers": answers}, ensure_ascii=False, indent=2) + "\n")
    return answers
