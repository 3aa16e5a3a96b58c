"""The long forms of the fault tests (`make soak`): whether they are wanted, and what they found."""

import json
import os
import platform
from pathlib import Path
from typing import Any

SOAK = bool(os.environ.get("FINETUNE_SOAK"))
RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "soak.json"


def record(test: str, **figures: Any) -> None:
    """Keeps what a long form found, with the machine and the versions that it ran with. A short form finds nothing new."""
    if not SOAK:
        return
    from finetune_trainer.report.result import read_versions

    results = json.loads(RESULT.read_text())["results"] if RESULT.exists() else {}
    head = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU", "versions": read_versions()}
    RESULT.write_text(json.dumps(head | {"results": results | {test: figures}}, indent=2, sort_keys=True) + "\n")
