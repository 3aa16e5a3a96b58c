"""What an interruption costs: the trainer against a plain TRL script with transformers' just-in-time checkpoint, in turns.

Seconds from SIGTERM, sent as a step ends, to the end of the process; from the start of the next process to its first new
step; and what saving in the background adds to the training's time.

    python -m benchmarks.preempt [--rounds N] [--write]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.trainer import ROWS, plan_job, run_trainer, write_command, write_results

RESULT = Path(__file__).with_name("results") / "preempt.json"
STOPPED_AT = 4
STEPS = 40
SAVED_EVERY = 5


class Process:
    """A training that tells of its steps in JSON lines."""

    def __init__(self, command: list[str]) -> None:
        environment = os.environ | {"FINETUNE_LOG_FORMAT": "json"}
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: list[str] = []

    def wait_for_step(self, at_least: int) -> tuple[int, float]:
        """(step, when it was told): the first step of at least this number."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if (step := _read_step(line)) >= at_least:
                return step, time.monotonic()
        raise SystemExit(f"ended before step {at_least}\n{''.join(self.lines)}"[-4000:])

    def terminate(self) -> tuple[int, float]:
        """(exit code, seconds) from SIGTERM to the end."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        rest, _ = self._process.communicate()
        self.lines.append(rest)
        return self._process.returncode, time.monotonic() - began

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _read_step(line: str) -> int:
    """The step whose end a line tells; 0 for another line. The trainer's progress before a first step has no loss yet."""
    told: dict[str, Any] = json.loads(line) if line.startswith('{"') else {}
    if "event" in told and (told["event"] != "progress" or "loss" not in told):
        return 0
    return int(told.get("step", 0))


@dataclass(frozen=True)
class Interruption:
    """One SIGTERM, and the process after it."""

    seconds_to_exit: float
    exit_code: int
    seconds_to_first_step: float
    lost_steps: int
    """Steps done before the end and done again."""


def interrupt(command: list[str]) -> Interruption:
    first = Process(command)
    first.wait_for_step(STOPPED_AT)
    code, seconds = first.terminate()
    done = max(map(_read_step, "".join(first.lines).splitlines()))
    second = Process(command)
    step, when = second.wait_for_step(1)
    second.kill()
    return Interruption(seconds, code, when - second.began, max(0, done + 1 - step))


def time_steps(command: list[str]) -> float:
    """Seconds between the first step's end and the last one's, saves in between included."""
    process = Process(command)
    _, began = process.wait_for_step(1)
    _, ended = process.wait_for_step(STEPS)
    process.kill()
    return ended - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root, cache = Path(scratch), Path(scratch) / "cache"

        def ours(name: str, **sections: Any) -> list[str]:
            folder = root / name
            plan = plan_job(folder, cache, STEPS, perDeviceBatchSize=2, globalBatchSize=2, **sections)
            return write_command(plan, folder)

        run_trainer(plan_job(root / "warm", cache, 1, perDeviceBatchSize=2, globalBatchSize=2), root / "warm")
        (model,) = (cache / "models").iterdir()

        def theirs(name: str) -> list[str]:
            arguments = [str(model), str(ROWS), str(STEPS), str(root / name)]
            return [sys.executable, "-m", "benchmarks.peers.jit_checkpoint", *arguments]

        pairs = [
            (interrupt(ours(f"ours-{turn}")), interrupt(theirs(f"theirs-{turn}"))) for turn in range(arguments.rounds)
        ]
        saving = {"none": {}, "async": {"everySteps": SAVED_EVERY, "async": True}, "sync": {"everySteps": SAVED_EVERY}}
        seconds: dict[str, list[float]] = {name: [] for name in saving}
        for turn in range(arguments.rounds):
            for name, checkpoint in saving.items():
                section = checkpoint or {"everySteps": 10 * STEPS}
                seconds[name].append(time_steps(ours(f"{name}-{turn}", checkpoint=section)))
    results = {
        "interruption": {
            "ours": _summarise([ours for ours, _ in pairs]),
            "just-in-time checkpoint of transformers": _summarise([theirs for _, theirs in pairs]),
        },
        f"saving every {SAVED_EVERY} of {STEPS} steps, share of the time without": {
            name: round(median(a / b for a, b in zip(seconds[name], seconds["none"], strict=True)), 3)
            for name in ("async", "sync")
        },
    }
    print(json.dumps(results, indent=2))
    if arguments.write:
        write_results(RESULT, "SmolLM2-135M-Instruct, float32, LoRA, batches of 2", results)


def _summarise(interruptions: list[Interruption]) -> dict[str, float]:
    """Medians."""
    fields = Interruption.__dataclass_fields__
    return {field: round(median(getattr(each, field) for each in interruptions), 2) for field in fields}


if __name__ == "__main__":
    main()
