"""Trains cells in processes of their own, as many at a time as the machine has cores for."""

import json
import multiprocessing
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from finetune_api.matrix import Cell
from finetune_api.plan import TrainingPlan
from finetune_api.progress import Result
from finetune_trainer.files import hash_folder
from tests.trainer.child import PRELOADED, run_child
from tests.trainer.matrix.plans import STEPS, plan_cell
from tests.trainer.ranks import place_ranks

SLOTS = 2
"""Trainer processes at a time."""
_SECONDS = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: trained to the end, then once more from the checkpoint in its middle."""

    exit_codes: tuple[int, ...]
    """Of all processes, those of the second run last."""
    log: str
    """Their last words, when one failed."""
    seconds: float
    losses: tuple[float, ...] = ()
    gradients: tuple[float, ...] = ()
    """Norm of the gradient at each step."""
    rewards: tuple[float, ...] = ()
    result: Result | None = None
    resumed: Result | None = None
    hashes: tuple[str, ...] = ()
    """Of the artifacts, first run."""
    resumed_hashes: tuple[str, ...] = ()


class CellRunner:
    """Begins all ``cells`` at once; ``wait`` gives the outcome of one."""

    def __init__(self, cells: Iterable[Cell], root: Path, model_folder: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._root, self._model_folder = root, model_folder
        self._free, self._turn = threading.Semaphore(SLOTS), threading.Lock()
        self._pool = ThreadPoolExecutor(SLOTS)
        self._futures: dict[Cell, Future[Outcome]] = {cell: self._pool.submit(self._run, cell) for cell in cells}

    def wait(self, cell: Cell) -> Outcome:
        return self._futures[cell].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _run(self, cell: Cell) -> Outcome:
        folder = self._root / f"{cell.method}-{cell.objective}-{cell.strategy}"
        plan = plan_cell(cell, folder, self._model_folder)
        with self._turn:  # a cell of two ranks gets both slots, or none
            for _ in range(plan.parallelism.world_size):
                self._free.acquire()
        try:
            began = monotonic()
            return self._train_twice(plan, folder, began)
        finally:
            for _ in range(plan.parallelism.world_size):
                self._free.release()
            shutil.rmtree(folder, ignore_errors=True)

    def _train_twice(self, plan: TrainingPlan, folder: Path, began: float) -> Outcome:
        codes = self._train(plan, folder, "first")
        if any(codes):
            return Outcome(codes, self._read_log(folder, "first"), monotonic() - began)
        checkpoints, output = Path(plan.checkpoint.directory), Path(plan.output.directory)
        history = json.loads((checkpoints / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
        result, hashes = _read_result(output)
        shutil.rmtree(checkpoints / f"checkpoint-{STEPS}")
        shutil.rmtree(output)
        codes += self._train(plan, folder, "second")
        if any(codes):
            return Outcome(codes, self._read_log(folder, "second"), monotonic() - began)
        resumed, resumed_hashes = _read_result(output)
        return Outcome(
            codes,
            "",
            monotonic() - began,
            tuple(entry["loss"] for entry in history if "loss" in entry),
            tuple(entry["grad_norm"] for entry in history if "loss" in entry),
            tuple(entry["reward"] for entry in history if "reward" in entry),
            result,
            resumed,
            hashes,
            resumed_hashes,
        )

    def _train(self, plan: TrainingPlan, folder: Path, name: str) -> tuple[int, ...]:
        """The exit codes of its ranks."""
        plan_file = folder / "plan.json"
        plan_file.write_text(plan.to_json())
        processes = []
        for rank, place in enumerate(place_ranks(plan)):
            environment = place | {"FINETUNE_TERMINATION_LOG": str(folder / f"{name}-{rank}.termination")}
            log = folder / f"{name}-{rank}.log"
            processes.append(self._context.Process(target=run_child, args=(plan_file, log, environment)))
            processes[-1].start()
        deadline = monotonic() + _SECONDS
        for process in processes:
            process.join(max(1.0, deadline - monotonic()))
            if process.exitcode != 0:
                for other in processes:
                    other.join(5)
                    other.kill()
                    other.join()
        return tuple(int(process.exitcode or 0) for process in processes)

    def _read_log(self, folder: Path, name: str) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(folder.glob(f"{name}-*.log")))


def _read_result(output: Path) -> tuple[Result, tuple[str, ...]]:
    result = Result.model_validate_json((output / "result.json").read_bytes())
    return result, tuple(hash_folder(Path(artifact.path)) for artifact in result.artifacts)


def describe(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """A line of the committed result."""
    assert outcome.result is not None
    return {
        "method": cell.method,
        "objective": cell.objective,
        "strategy": cell.strategy,
        "loss": [round(outcome.losses[0], 4), round(outcome.losses[-1], 4)],
        "reward": [round(outcome.rewards[0], 4), round(outcome.rewards[-1], 4)] if outcome.rewards else None,
        "artifacts": [artifact.type for artifact in outcome.result.artifacts],
        "seconds": round(outcome.seconds, 1),
    }
