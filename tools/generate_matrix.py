"""docs/reference/methods.md: methods, objectives and strategies, and which of them go together."""

from collections.abc import Iterator
from pathlib import Path

from finetune_api.matrix import EXCLUSIONS, find_exclusion, list_cells
from finetune_api.methods import METHODS, MethodType
from finetune_api.objectives import OBJECTIVES, ObjectiveType
from finetune_api.strategies import STRATEGIES

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "methods.md"


def generate() -> dict[Path, str]:
    """The generated files and their text."""
    return {TARGET: "\n".join(_write_page()) + "\n"}


def _write_page() -> Iterator[str]:
    cells = list(list_cells())
    supported = sum(cell.supported for cell in cells)
    yield "<!-- Generated from operator/finetune_api; `make generate` writes it anew. -->"
    yield "# Methods, objectives, strategies"
    yield ""
    yield f"`method.type`, `objective.type` and `parallelism.strategy` go together in {supported} of {len(cells)} combinations. The others are"
    yield "refused when the FineTuneJob is written, with the reasons below."
    yield from (
        "",
        "## Methods",
        "",
        "| `method.type` | Trains | Usual learning rate | Makes | Takes | Source |",
        "|---|---|---|---|---|---|",
    )
    for name, method in METHODS.items():
        makes = "adapter" if method.adapter else "model"
        if method.adapter and method.mergeable:
            makes += ", or merged model"
        yield f"| `{name}` | {method.description} | {method.learning_rate:g} | {makes} | {_list(method.settings)} | {method.source} |"
    yield from (
        "",
        "## Objectives",
        "",
        "| `objective.type` | Learns | Rows (`dataset.format`) | Learning rate | Takes | Source |",
        "|---|---|---|---|---|---|",
    )
    for type_, objective in OBJECTIVES.items():
        factor = "the method's" if objective.learning_rate_factor == 1 else f"x {objective.learning_rate_factor:g}"
        formats = ", ".join(f"`{each}`" for each in objective.formats)
        yield f"| `{type_}` | {objective.description} | {formats} | {factor} | {_list(objective.settings)} | {objective.source} |"
    yield from ("", "## Strategies", "", "| `parallelism.strategy` | How | Shared out | Source |", "|---|---|---|---|")
    for kind, strategy in STRATEGIES.items():
        yield f"| `{kind}` | {strategy.description} | {', '.join(strategy.shards)} | {strategy.source} |"
    yield from ("", "## What goes together", "")
    yield "A cell names the strategies that work, with the numbers of the reasons that refuse the others."
    yield ""
    yield f"| | {' | '.join(f'`{objective}`' for objective in OBJECTIVES)} |"
    yield "|---" * (len(OBJECTIVES) + 1) + "|"
    for row in METHODS:
        yield f"| `{row}` | {' | '.join(_write_cell(row, column) for column in OBJECTIVES)} |"
    if EXCLUSIONS:
        yield from ("", "| | Refused because | Instead |", "|---|---|---|")
    for number, exclusion in enumerate(EXCLUSIONS, start=1):
        yield f"| {number} | {exclusion.reason} | {exclusion.instead} |"


def _write_cell(method: MethodType, objective: ObjectiveType) -> str:
    reasons = {strategy: find_exclusion(method, objective, strategy) for strategy in STRATEGIES}
    working = [strategy for strategy, exclusion in reasons.items() if exclusion is None]
    numbers = sorted({EXCLUSIONS.index(each) + 1 for each in reasons.values() if each is not None})
    told = "all" if not numbers else ", ".join(working) if working else "none"
    return f"{told} ({', '.join(map(str, numbers))})" if numbers else told


def _list(settings: frozenset[str]) -> str:
    return ", ".join(f"`{each}`" for each in sorted(settings))
