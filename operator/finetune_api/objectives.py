"""The objectives of training: what each optimises, the rows it needs, the settings it takes. One entry an objective."""

from typing import Literal, NamedTuple, get_args

ObjectiveType = Literal["sft", "pretrain", "dpo", "orpo", "kto", "reward", "ppo", "rloo", "grpo"]

DpoLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
"""TRL's loss types of DPOTrainer."""
DPO_LOSSES: tuple[DpoLoss, ...] = get_args(DpoLoss)

Rows = Literal["language", "preference", "unpaired", "prompts"]
"""What a prepared row holds: tokens and labels; a prompt with a chosen and a rejected answer; a prompt with one answer
and whether it is liked; a prompt to be answered."""

FORMATS: dict[Rows, tuple[str, ...]] = {
    "language": ("chatml", "sharegpt", "prompt-completion", "alpaca", "text"),
    "preference": ("preference",),
    "unpaired": ("unpaired-preference", "preference"),
    "prompts": ("prompts", "prompt-completion", "chatml", "sharegpt", "alpaca"),
}
"""Dataset formats that give such rows. Of conversations, a prompt is what stands before the last answer."""


class Objective(NamedTuple):
    """One objective."""

    rows: Rows
    description: str
    source: str
    """Paper."""
    settings: frozenset[str]
    """Fields of spec.objective, beside type, that it takes."""
    beta: float | None
    """Default of objective.beta."""
    learning_rate_factor: float
    """Usual peak learning rate as a share of the method's for supervised fine-tuning."""
    generates: bool = False
    """The model answers prompts while it is trained."""
    classifies: bool = False
    """The head is a score instead of the vocabulary."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Dataset formats it can be trained on."""
        return FORMATS[self.rows]


_REWARDED = frozenset({"beta", "rewardModel", "rewardFunctions", "generation"})

OBJECTIVES: dict[ObjectiveType, Objective] = {
    "sft": Objective(
        "language", "next-token cross-entropy on the responses", "", frozenset({"responseOnly"}), None, 1.0
    ),
    "pretrain": Objective("language", "next-token cross-entropy on every token", "", frozenset(), None, 1.0),
    "dpo": Objective(
        "preference",
        "preferred answers over rejected ones, against a reference",
        "Rafailov et al. 2023, arXiv:2305.18290",
        frozenset({"beta", "losses", "lossWeights", "labelSmoothing", "referenceModel", "precomputeReference"}),
        0.1,
        0.05,
    ),
    "orpo": Objective(
        "preference",
        "likelihood of the preferred answers and the odds of preferring them, no reference",
        "Hong et al. 2024, arXiv:2403.07691",
        frozenset({"beta"}),
        0.1,
        0.1,
    ),
    "kto": Objective(
        "unpaired",
        "liked and disliked answers, against a reference",
        "Ethayarajh et al. 2024, arXiv:2402.01306",
        frozenset({"beta", "desirableWeight", "undesirableWeight", "referenceModel", "precomputeReference"}),
        0.1,
        0.05,
    ),
    "reward": Objective(
        "preference",
        "a score that is higher for preferred answers",
        "Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155",
        frozenset(),
        None,
        0.5,
        classifies=True,
    ),
    "ppo": Objective(
        "prompts",
        "rewards of sampled answers, by clipped policy gradients with a value head",
        "Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155",
        _REWARDED | {"ppo"},
        0.05,
        0.05,
        generates=True,
    ),
    "rloo": Objective(
        "prompts",
        "rewards of sampled answers against the mean of their siblings",
        "Ahmadian et al. 2024, arXiv:2402.14740",
        _REWARDED,
        0.05,
        0.05,
        generates=True,
    ),
    "grpo": Objective(
        "prompts",
        "rewards of sampled answers, normalised in their group",
        "Shao et al. 2024, arXiv:2402.03300",
        _REWARDED,
        0.0,
        0.05,
        generates=True,
    ),
}

SETTINGS: frozenset[str] = frozenset().union(*(objective.settings for objective in OBJECTIVES.values()))
"""Every field of spec.objective that only some objectives take."""


def list_taking(setting: str) -> list[ObjectiveType]:
    """The objectives that take a field of spec.objective."""
    return [name for name, objective in OBJECTIVES.items() if setting in objective.settings]
