"""Which encoded rows are trained on, which validate, and how long they may be."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence

from finetune_api.plan import TrainingPlan
from finetune_trainer.errors import InvalidInputError

_PERCENTILE = 0.95
_MULTIPLE = 64


def decide_length(lengths: Sequence[int], extra: int, positions: int | None) -> int:
    """The nearest-rank 95th percentile of ``lengths`` with ``extra`` tokens, up to a multiple of 64, within the model's
    positions."""
    ranked = sorted(lengths)
    wanted = ranked[math.ceil(_PERCENTILE * len(ranked)) - 1] + extra
    rounded = math.ceil(wanted / _MULTIPLE) * _MULTIPLE
    return min(rounded, positions) if positions else rounded


def split_rows(plan: TrainingPlan, source_rows: Sequence[int], keys: Sequence[str]) -> set[int]:
    """The source rows held out for validation: ``validation_fraction`` of them, drawn by the seed.

    Rows of the same normalised text stay on one side, and so do the responses of one conversation. Near duplicates are
    no more there when they are looked for.

    Raises: InvalidInputError when a side would be empty.
    """
    families = _families(source_rows, keys)
    total = sum(len(family) for family in families)
    wanted = round(total * (plan.dataset.validation_fraction or 0.0))
    held_out: set[int] = set()
    for family in random.Random(plan.training.seed).sample(families, len(families)):
        if len(held_out) + len(family) <= wanted:
            held_out.update(family)
    if not 0 < len(held_out) < total:
        duplicates = (
            f", {total - len(families)} of them duplicates that stay together," if total > len(families) else ""
        )
        raise InvalidInputError(
            f"dataset.validation.fraction {plan.dataset.validation_fraction} of {total} rows{duplicates} leaves "
            f"{total - len(held_out)} for training and {len(held_out)} for validation; both need at least one"
        )
    return held_out


def _families(source_rows: Sequence[int], keys: Sequence[str]) -> list[list[int]]:
    """Source rows that share a text, through others too; in the order of their first row."""
    parents: dict[int, int] = {}

    def find(row: int) -> int:
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    firsts: dict[str, int] = {}
    for row, key in zip(source_rows, keys, strict=True):
        parents.setdefault(row, row)
        first = firsts.setdefault(key, row)
        one, other = sorted((find(first), find(row)))
        parents[other] = one
    families: defaultdict[int, list[int]] = defaultdict(list)
    for row in parents:
        families[find(row)].append(row)
    return list(families.values())


def draw_mixture(count: int, wanted: int, seed: str) -> list[int]:
    """``wanted`` of ``count`` rows: each once before any comes twice."""
    generator = random.Random(seed)
    drawn: list[int] = []
    while len(drawn) < wanted:
        drawn += generator.sample(range(count), min(count, wanted - len(drawn)))
    return drawn
