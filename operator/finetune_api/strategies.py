"""The ways in which processes share a training. One entry a strategy."""

from typing import Literal, NamedTuple

StrategyType = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp"]


class Strategy(NamedTuple):
    """One strategy."""

    description: str
    source: str
    """Paper."""
    engine: Literal["none", "ddp", "deepspeed", "fsdp"]
    shards: tuple[str, ...]
    """What each process holds a share of: optimizer, gradients, parameters."""


STRATEGIES: dict[StrategyType, Strategy] = {
    "single": Strategy("one process", "", "none", ()),
    "ddp": Strategy(
        "each process holds everything, gradients are averaged", "Li et al. 2020, arXiv:2006.15704", "ddp", ()
    ),
    "zero1": Strategy(
        "DeepSpeed, optimiser states shared out",
        "Rajbhandari et al. 2019, arXiv:1910.02054",
        "deepspeed",
        ("optimizer",),
    ),
    "zero2": Strategy(
        "DeepSpeed, optimiser states and gradients shared out",
        "Rajbhandari et al. 2019, arXiv:1910.02054",
        "deepspeed",
        ("optimizer", "gradients"),
    ),
    "zero3": Strategy(
        "DeepSpeed, optimiser states, gradients and parameters shared out",
        "Rajbhandari et al. 2019, arXiv:1910.02054",
        "deepspeed",
        ("optimizer", "gradients", "parameters"),
    ),
    "fsdp": Strategy(
        "PyTorch's fully sharded data parallel",
        "Zhao et al. 2023, arXiv:2304.11277",
        "fsdp",
        ("optimizer", "gradients", "parameters"),
    ),
}
