"""The table method x objective x strategy: what it supports trains, resumes, exports and reloads; the rest is refused.

``make test`` trains the cells that ``choose_cells`` names, ``make test-matrix`` all that are supported.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

import pytest

from finetune_api.matrix import EXCLUSIONS, Cell, list_cells
from finetune_api.methods import METHODS
from finetune_api.objectives import OBJECTIVES
from finetune_api.strategies import STRATEGIES
from tests.trainer.matrix.cells import choose_cells, list_supported
from tests.trainer.matrix.plans import MIDDLE, STEPS
from tests.trainer.matrix.runner import CellRunner, Outcome, describe

ALL = os.environ.get("FINETUNE_MATRIX") == "all"
ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "matrix.json"
PARTIAL = RESULT.with_suffix(".partial.jsonl")
"""Cells that passed in a run of all that was cut off; the next one of the same sources goes on from there."""


def hash_sources() -> str:
    digest = hashlib.sha256()
    for folder in ("operator/finetune_api", "operator/finetune_operator/plan", "trainer_image"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read_passed() -> dict[str, str]:
    """Name of the cell -> its line."""
    if not ALL or not PARTIAL.exists():
        return {}
    lines = [json.loads(line) for line in PARTIAL.read_text().splitlines()]
    return {line["name"]: line["cell"] for line in lines if line["sources"] == SOURCES}


def name(cell: Cell) -> str:
    return f"{cell.method}-{cell.objective}-{cell.strategy}"


SOURCES = hash_sources()
PASSED = read_passed()
CELLS = [cell for cell in list_supported() if name(cell) not in PASSED] if ALL else choose_cells()


@pytest.fixture(scope="module")
def runner(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellRunner]:
    """Trains the cells whose tests were chosen."""
    chosen = [
        item.callspec.params["cell"]
        for item in request.session.items
        if item.fspath == request.path and hasattr(item, "callspec")
    ]  # type: ignore[attr-defined]
    runner = CellRunner(chosen, tmp_path_factory.mktemp("cells"), tiny_model)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def passed() -> Iterator[Callable[[Cell, Outcome], None]]:
    """Told of each cell that passed; all of them together are written down."""
    lines = dict(PASSED)

    def keep(cell: Cell, outcome: Outcome) -> None:
        if ALL:
            lines[name(cell)] = line = json.dumps(describe(cell, outcome))
            with PARTIAL.open("a") as file:
                file.write(json.dumps({"sources": SOURCES, "name": name(cell), "cell": line}) + "\n")

    yield keep
    if ALL and len(lines) == len(list_supported()):
        from finetune_trainer.report.result import read_versions

        head = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU", "versions": read_versions()}
        body = ",\n".join(lines[name(cell)] for cell in list_supported())
        RESULT.write_text(f'{json.dumps(head)[:-1]}, "supported": {len(lines)}, "cells": [\n{body}\n]}}\n')
        PARTIAL.unlink()


@pytest.mark.parametrize("cell", CELLS, ids=name)
def test_cell(cell: Cell, runner: CellRunner, passed: Callable[[Cell, Outcome], None]) -> None:
    outcome = runner.wait(cell)
    assert not any(outcome.exit_codes), outcome.log
    assert outcome.result is not None and outcome.resumed is not None
    assert len(outcome.losses) == STEPS
    if OBJECTIVES[cell.objective].generates:
        # A few answers say little about the reward: tests of the objectives show that it rises.
        assert len(outcome.rewards) == STEPS
        assert max(outcome.gradients) > 0
    else:
        assert mean(outcome.losses[-3:]) < mean(outcome.losses[:3]), outcome.losses
    # A run that goes on from the middle ends with the same bits.
    assert outcome.resumed.resumes == 1 and outcome.resumed.steps == STEPS > MIDDLE
    assert outcome.resumed_hashes == outcome.hashes
    # Each artifact was loaded again and compared: ``output.verify``.
    assert [artifact.type for artifact in outcome.result.artifacts] == [
        *(["adapter"] if METHODS[cell.method].adapter else []),
        *(["merged"] if METHODS[cell.method].mergeable and not OBJECTIVES[cell.objective].classifies else []),
    ]
    passed(cell, outcome)


def test_every_cell_is_either_supported_or_refused() -> None:
    cells = list(list_cells())
    supported, refused = [c for c in cells if c.supported], [c for c in cells if not c.supported]
    print(f"{len(cells)} cells: {len(supported)} supported, {len(CELLS)} of them trained here; {len(refused)} refused")
    assert len(cells) == len(METHODS) * len(OBJECTIVES) * len(STRATEGIES) == len(supported) + len(refused)
    assert all(cell.exclusion.reason and cell.exclusion.instead for cell in refused if cell.exclusion)
    # Each exclusion refuses a cell that no other one does, or it would be dead.
    assert {cell.exclusion for cell in refused} == set(EXCLUSIONS)
    # Each method, objective and strategy works with something.
    for registry, of in ((METHODS, "method"), (OBJECTIVES, "objective"), (STRATEGIES, "strategy")):
        assert {getattr(cell, of) for cell in supported} == set(registry)


def test_the_chosen_cells_have_every_pair() -> None:
    def pairs(cells: list[Cell]) -> set[tuple[str, str]]:
        return {(cell.method, cell.objective) for cell in cells} | {(c.method, c.strategy) for c in cells} | {(c.objective, c.strategy) for c in cells}  # fmt: skip

    assert pairs(choose_cells()) == pairs(list_supported())
