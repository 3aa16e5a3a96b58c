"""The trainer against plain scripts: tokens a second and peak memory, same model, rows and settings, taking turns in one run.

Peers: a plain TRL script with the same settings (no packing on either side); a widespread script that pads every row to the
longest length, against the trainer with packing. Tokens are those of the data, padding not counted.

    python -m benchmarks.trainer [--steps N] [--rounds N] [--write]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from finetune_api.plan import TrainingPlan
from finetune_api.progress import Result
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import LocalLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob

EXAMPLES = Path(__file__).parents[1] / "manifests" / "examples"
ROWS = EXAMPLES / "data" / "finetune-faq.train.jsonl"
RESULT = Path(__file__).with_name("results") / "trainer.json"


@dataclass(frozen=True)
class Measurement:
    """One run."""

    tokens_per_second: float
    peak_bytes: int
    loss: float


def plan_job(folder: Path, cache: Path, steps: int, checkpoint: Any = None, **training: Any) -> TrainingPlan:
    """LoRA on SmolLM2 with the settings of the peers; ``training`` and ``checkpoint`` hold what differs."""
    quickstart = next(yaml.safe_load_all((EXAMPLES / "quickstart.yaml").read_text()))["spec"]
    spec = {
        "model": {"source": quickstart["model"]["source"]},
        "dataset": {"source": f"file://{ROWS}"},
        "method": {"type": "lora", "rank": 16, "alpha": 32, "dropout": 0.05},
        "objective": {"responseOnly": False},
        "training": {"maxSteps": steps, "learningRate": 2e-4, "maxLength": 256, "loggingSteps": 1} | training,
        "checkpoint": checkpoint or {},
        "output": {"verify": False},
        "resources": quickstart["resources"],
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "bench"}, "spec": spec}
    layout = LocalLayout(root=str(folder), cache=str(cache), claims={})
    return decide_plan(parse_finetunejob(job), Settings(), layout).plan


def write_command(plan: TrainingPlan, folder: Path) -> list[str]:
    """What runs the plan, as ``finetune run`` starts it; the plan is written into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    file.write_text(plan.to_json())
    return [sys.executable, "-m", "finetune_trainer", "--plan", str(file)]


def run_trainer(plan: TrainingPlan, folder: Path) -> Measurement:
    _run(write_command(plan, folder))
    result = Result.model_validate_json((Path(plan.output.directory) / "result.json").read_bytes())
    assert result.loss is not None
    return Measurement(result.tokens_per_second, result.peak_host_memory_bytes, result.loss)


def run_peer(module: str, model: Path, steps: int) -> Measurement:
    """A plain script of ``benchmarks.peers``."""
    printed = _run([sys.executable, "-m", f"benchmarks.peers.{module}", str(model), str(ROWS), str(steps)])
    told = json.loads(printed.splitlines()[-1])
    return Measurement(told["tokens"] / told["seconds"], told["peak_bytes"], told["loss"])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}{done.stderr}"[-4000:])
    return done.stdout


def compare(rounds: int, ours: Callable[[int], Measurement], theirs: Callable[[], Measurement]) -> dict[str, float]:
    """Medians of ``rounds`` turns, and the median of each turn's ratio."""
    pairs = [(ours(turn), theirs()) for turn in range(rounds)]
    speeds = [(one.tokens_per_second, other.tokens_per_second) for one, other in pairs]
    return {
        "ours_tokens_per_second": round(median(one for one, _ in speeds), 1),
        "theirs_tokens_per_second": round(median(other for _, other in speeds), 1),
        "tokens_per_second_ratio": round(median(one / other for one, other in speeds), 3),
        "ours_peak_gib": round(median(one.peak_bytes for one, _ in pairs) / 2**30, 2),
        "theirs_peak_gib": round(median(other.peak_bytes for _, other in pairs) / 2**30, 2),
        "ours_loss": round(pairs[-1][0].loss, 4),
        "theirs_loss": round(pairs[-1][1].loss, 4),
    }


def write_results(file: Path, model: str, results: dict[str, Any]) -> None:
    """With the machine and the versions that they were measured on."""
    from finetune_trainer.report.result import read_versions

    head = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU", "model": model}
    file.write_text(json.dumps(head | {"versions": read_versions(), "results": results}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        cache = root / "cache"

        def ours(name: str, **training: Any) -> Callable[[int], Measurement]:
            def run(turn: int) -> Measurement:
                folder = root / f"{name}-{turn}"
                return run_trainer(plan_job(folder, cache, arguments.steps, **training), folder)

            return run

        same = ours("same", perDeviceBatchSize=8, globalBatchSize=8)
        same(-1)  # dequantises the model, for the peers too
        (model,) = (cache / "models").iterdir()
        results = {
            "same settings, against a plain TRL script": compare(
                arguments.rounds, same, lambda: run_peer("plain_trl", model, arguments.steps)
            ),
            "packing, against a script that pads to the longest length": compare(
                arguments.rounds,
                ours("packed", packing="bfd", perDeviceBatchSize=4, globalBatchSize=16),
                lambda: run_peer("padded_lora", model, max(2, arguments.steps // 4)),
            ),
        }
    for name, figures in results.items():
        print(name, *(f"  {key:26} {value}" for key, value in figures.items()), sep="\n")
    if arguments.write:
        write_results(RESULT, "SmolLM2-135M-Instruct, float32", results)


if __name__ == "__main__":
    main()
