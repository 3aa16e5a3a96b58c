"""The methods of fine-tuning: what each trains, what it takes, what can be made of the result. One entry a method."""

from typing import Literal, NamedTuple

MethodType = Literal[
    "full",
    "freeze",
    "lora",
    "qlora",
    "dora",
    "rslora",
    "lora-plus",
    "pissa",
    "olora",
    "loftq",
    "adalora",
    "ia3",
    "prefix",
    "prompt",
    "p-tuning",
    "p-tuning-v2",
    "bottleneck",
]

Part = Literal["none", "trainable_layers", "lora", "ia3", "prompt", "bottleneck"]
"""Which part of the plan's method holds its settings."""


class Method(NamedTuple):
    """One method."""

    part: Part
    description: str
    source: str
    """Paper."""
    settings: frozenset[str]
    """Fields of spec.method, beside type, that it takes."""
    learning_rate: float
    """Usual peak for supervised fine-tuning."""
    adapter: bool
    """Trains an adapter beside frozen weights; false: the weights themselves."""
    mergeable: bool
    """The result can be one model without the adapter."""


_LORA = frozenset({"rank", "alpha", "dropout", "targetModules", "resumeAdapter"})
_PROMPT = frozenset({"virtualTokens", "resumeAdapter"})
_ENCODED = _PROMPT | {"encoderHiddenSize"}

METHODS: dict[MethodType, Method] = {
    "full": Method("none", "all weights", "", frozenset(), 2e-5, False, True),
    "freeze": Method(
        "trainable_layers",
        "the last decoder layers and the final norm",
        "Howard & Ruder 2018, arXiv:1801.06146",
        frozenset({"trainableLayers"}),
        2e-5,
        False,
        True,
    ),
    "lora": Method("lora", "low-rank adapters", "Hu et al. 2021, arXiv:2106.09685", _LORA, 2e-4, True, True),
    "qlora": Method(
        "lora",
        "lora on a base quantised to 4 or 8 bits",
        "Dettmers et al. 2023, arXiv:2305.14314",
        _LORA | {"quantization"},
        2e-4,
        True,
        True,
    ),
    "dora": Method(
        "lora",
        "lora on the weights' directions, their magnitudes trained beside it",
        "Liu et al. 2024, arXiv:2402.09353",
        _LORA,
        2e-4,
        True,
        True,
    ),
    "rslora": Method(
        "lora", "lora scaled by alpha / sqrt(rank)", "Kalajdzievski 2023, arXiv:2312.03732", _LORA, 2e-4, True, True
    ),
    "lora-plus": Method(
        "lora",
        "lora whose B matrices learn faster than its A matrices",
        "Hayou et al. 2024, arXiv:2402.12354",
        _LORA | {"learningRateRatio"},
        1e-4,
        True,
        True,
    ),
    "pissa": Method(
        "lora",
        "lora that starts from the principal singular vectors of the weights",
        "Meng et al. 2024, arXiv:2404.02948",
        _LORA - {"resumeAdapter"},
        2e-5,
        True,
        True,
    ),
    "olora": Method(
        "lora",
        "lora that starts from an orthonormal basis of the weights",
        "Büyükakyüz 2024, arXiv:2406.01775",
        _LORA - {"resumeAdapter"},
        1e-4,
        True,
        True,
    ),
    "loftq": Method(
        "lora",
        "lora that starts from what quantising the weights to 4 bits loses",
        "Li et al. 2023, arXiv:2310.08659",
        _LORA - {"resumeAdapter"},
        2e-4,
        True,
        True,
    ),
    "adalora": Method(
        "lora",
        "lora whose ranks are spent where they matter, by a budget updated each step",
        "Zhang et al. 2023, arXiv:2303.10512",
        (_LORA | {"initialRank"}) - {"resumeAdapter"},
        1e-3,
        True,
        True,
    ),
    "ia3": Method(
        "ia3",
        "learned scales on keys, values and feed-forward activations",
        "Liu et al. 2022, arXiv:2205.05638",
        frozenset({"targetModules", "resumeAdapter"}),
        3e-3,
        True,
        True,
    ),
    "prefix": Method(
        "prompt",
        "trained keys and values before every layer's, made by a small network",
        "Li & Liang 2021, arXiv:2101.00190",
        _ENCODED,
        1e-3,
        True,
        False,
    ),
    "prompt": Method(
        "prompt",
        "trained embeddings before the input",
        "Lester et al. 2021, arXiv:2104.08691",
        _PROMPT,
        3e-2,
        True,
        False,
    ),
    "p-tuning": Method(
        "prompt",
        "trained embeddings before the input, made by a small network",
        "Liu et al. 2021, arXiv:2103.10385",
        _ENCODED,
        1e-3,
        True,
        False,
    ),
    "p-tuning-v2": Method(
        "prompt",
        "trained keys and values before every layer's",
        "Liu et al. 2021, arXiv:2110.07602",
        _PROMPT,
        1e-2,
        True,
        False,
    ),
    "bottleneck": Method(
        "bottleneck",
        "small feed-forward adapters behind the sublayers",
        "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247",
        frozenset({"bottleneckSize", "placement", "dropout", "resumeAdapter"}),
        1e-4,
        True,
        False,
    ),
}

SETTINGS: frozenset[str] = frozenset().union(*(method.settings for method in METHODS.values()))
"""Every field of spec.method that only some methods take."""


def list_taking(setting: str) -> list[MethodType]:
    """The methods that take a field of spec.method."""
    return [name for name, method in METHODS.items() if setting in method.settings]


def list_with_part(part: Part) -> list[MethodType]:
    """The methods whose settings are in this part of the plan."""
    return [name for name, method in METHODS.items() if method.part == part]
