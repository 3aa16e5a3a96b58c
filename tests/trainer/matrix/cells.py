"""Which cells of the table are trained, by which test."""

from collections.abc import Iterable

from finetune_api.matrix import Cell, list_cells

GRID_METHODS, GRID_OBJECTIVES = ("full", "lora", "qlora"), ("sft", "dpo")


def list_supported() -> list[Cell]:
    """All cells that validation lets pass."""
    return [cell for cell in list_cells() if cell.supported]


def choose_cells() -> list[Cell]:
    """Those of ``make test``: every method x objective on one process, every strategy x {full, lora, qlora} x {sft, dpo}
    on two, and a pairwise cover of the rest."""
    supported = list_supported()
    chosen = [cell for cell in supported if cell.strategy == "single" or in_grid(cell)]
    return chosen + cover_pairs([cell for cell in supported if cell.strategy != "single"], chosen)


def in_grid(cell: Cell) -> bool:
    return cell.strategy != "single" and cell.method in GRID_METHODS and cell.objective in GRID_OBJECTIVES


def cover_pairs(cells: Iterable[Cell], chosen: Iterable[Cell]) -> list[Cell]:
    """Cells, few of them, that have each pair of (method, strategy) and (objective, strategy) of ``cells`` that
    ``chosen`` lacks: the greedy algorithm."""
    cells = list(cells)
    missing = {pair for cell in cells for pair in _pairs(cell)} - {pair for cell in chosen for pair in _pairs(cell)}
    cover = []
    while missing:
        best = max(cells, key=lambda cell: len(missing & _pairs(cell)))
        cover.append(best)
        missing -= _pairs(best)
    return cover


def _pairs(cell: Cell) -> set[tuple[str, str]]:
    return {(cell.method, cell.strategy), (cell.objective, cell.strategy)}
