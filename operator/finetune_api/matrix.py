"""The table method x objective x strategy as data: what is refused, why, and the nearest thing that works.

Validation, the CRD, the reference page and the tests read it; whatever it does not refuse is supported and tested.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from finetune_api.methods import METHODS, MethodType
from finetune_api.objectives import OBJECTIVES, ObjectiveType
from finetune_api.strategies import STRATEGIES, StrategyType


@dataclass(frozen=True)
class Exclusion:
    """Cells that are refused; an empty tuple stands for all."""

    name: str
    reason: str
    instead: str
    """The nearest thing that works."""
    methods: tuple[MethodType, ...] = ()
    objectives: tuple[ObjectiveType, ...] = ()
    strategies: tuple[StrategyType, ...] = ()

    def covers(self, method: MethodType, objective: ObjectiveType, strategy: StrategyType | None) -> bool:
        """Whether the cell is among those refused. ``None``: a strategy that is still to be chosen, so a cell is only
        covered when every strategy is."""
        return (
            (not self.methods or method in self.methods)
            and (not self.objectives or objective in self.objectives)
            and (not self.strategies or strategy in self.strategies)
        )


EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        name="adalora-engine",
        reason="AdaLoRA ranks its singular values by their gradients, which DeepSpeed and FSDP don't leave on the parameters",
        instead="parallelism.strategy ddp, or method.type lora",
        methods=("adalora",),
        strategies=("zero1", "zero2", "zero3", "fsdp"),
    ),
    Exclusion(
        name="virtual-tokens-shared-out",
        reason="PEFT computes virtual tokens outside the model's forward pass, where weights that are shared out aren't gathered",
        instead="parallelism.strategy ddp or zero2: what these methods train is small",
        methods=("prefix", "prompt", "p-tuning", "p-tuning-v2"),
        strategies=("zero3", "fsdp"),
    ),
    Exclusion(
        name="loftq-shared-out",
        reason="LoftQ starts from what quantising each whole weight loses, and under ZeRO-3 a process holds only its share of it",
        instead="parallelism.strategy zero2 or fsdp, or method.type qlora",
        methods=("loftq",),
        strategies=("zero3",),
    ),
    Exclusion(
        name="prompted-score",
        reason="a score is read at a row's last token, which transformers can't find behind trained embeddings: it would read the padding",
        instead="method.type p-tuning-v2, or lora",
        methods=("prompt", "p-tuning"),
        objectives=("reward",),
    ),
)


@dataclass(frozen=True)
class Cell:
    """One combination."""

    method: MethodType
    objective: ObjectiveType
    strategy: StrategyType
    exclusion: Exclusion | None

    @property
    def supported(self) -> bool:
        return self.exclusion is None


def find_exclusion(method: MethodType, objective: ObjectiveType, strategy: StrategyType | None) -> Exclusion | None:
    """Why the combination is refused; None: it is supported."""
    return next((each for each in EXCLUSIONS if each.covers(method, objective, strategy)), None)


def list_cells() -> Iterator[Cell]:
    """Every combination, in the order of the registries."""
    for method, objective, strategy in product(METHODS, OBJECTIVES, STRATEGIES):
        yield Cell(method, objective, strategy, find_exclusion(method, objective, strategy))
