"""What an interruption costs: the trainer against a plain TRL script with transformers' just-in-time checkpoint, in turns.

Seconds from SIGTERM, sent as a step ends, to the end of the process; from the start of the next process to its first new
step; and what a save adds to the training's time.

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
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.trainer import ROWS, plan_job, run_trainer, write_command, write_results

RESULT = Path(__file__).with_name("results") / "preempt.json"
STOPPED_AT = 4
STEPS = 50
SAVED_EVERY = 20
"""Steps: about 15 seconds, more often than anybody would."""
FELT_FOR = 3
"""Steps after a save that it may slow."""


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


def time_steps(command: list[str]) -> list[float]:
    """Seconds from each step's end to the next one's, what is saved in between included; the last steps are left out."""
    process = Process(command)
    ends = [process.wait_for_step(step)[1] for step in range(1, STEPS - 1)]
    process.kill()
    return [later - earlier for earlier, later in pairwise(ends)]


def measure_save(saving: list[float], without: list[float]) -> tuple[float, float]:
    """What one save adds: (seconds, share of the time from one to the next). The runs train on the same batches.

    A machine is faster in one minute than in the next: the other run's steps are taken as long as the undisturbed steps of
    this one say.
    """
    saves = range(SAVED_EVERY - 1, len(saving), SAVED_EVERY)
    felt = {save + later for save in saves for later in range(FELT_FOR)}
    pairs = list(zip(saving, without, strict=True))
    pace = median(a / b for number, (a, b) in enumerate(pairs) if number not in felt)
    seconds = sum(a - pace * b for number, (a, b) in enumerate(pairs) if number in felt) / len(saves)
    return seconds, seconds / (SAVED_EVERY * pace * sum(without) / len(without))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
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
        saving: dict[str, Any] = {
            "none": {"everySteps": 10 * STEPS},
            "async": {"everySteps": SAVED_EVERY, "async": True},
            "sync": {"everySteps": SAVED_EVERY},
        }
        seconds: dict[str, list[list[float]]] = {name: [] for name in saving}
        for turn in range(arguments.rounds):
            for name, section in saving.items():
                seconds[name].append(time_steps(ours(f"{name}-{turn}", checkpoint=section)))
    results = {
        "interruption": {
            "ours": _summarise([ours for ours, _ in pairs]),
            "just-in-time checkpoint of transformers": _summarise([theirs for _, theirs in pairs]),
        },
        f"saving every {SAVED_EVERY} steps": {
            name: _describe_saves([measure_save(*pair) for pair in zip(seconds[name], seconds["none"], strict=True)])
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


def _describe_saves(saves: list[tuple[float, float]]) -> dict[str, float]:
    """Medians."""
    seconds, shares = zip(*saves, strict=True)
    return {"seconds_a_save": round(median(seconds), 2), "share_of_the_time": round(median(shares), 4)}


if __name__ == "__main__":
    main()
