"""Rules between fields, as data. Each has the predicate that refuses in Python and, where the rule is local enough, the
CEL expression that refuses the same in the API server (generated into the CRD). A test holds both against each other.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_snake

from finetune_api import matrix, methods, objectives
from finetune_api.kubernetes import LabelSelectorRequirement, NodeSelectorRequirement, Volume, parse_quantity
from finetune_api.memory import OFFLOADING_OBJECTIVES, find_search_refusal
from finetune_api.methods import METHODS
from finetune_api.model_base import ApiModel
from finetune_api.names import ENV_HF_TOKEN, ENV_WANDB_API_KEY, GPU_PRODUCT_LABEL, PLAN_DIRECTORY
from finetune_api.objectives import OBJECTIVES
from finetune_api.packing import PackingSetting, find_packing_refusal
from finetune_api.spec import FineTuneJobSpec, Generation, Method, Objective
from finetune_api.strategies import STRATEGIES, StrategyType

# A hit is (path below spec, offending value).
Hit = tuple[str, Any]

RESERVED_VOLUMES = frozenset({"plan", "output", "model", "dataset", "validation", "cache", "shm", "tmp"})
RESERVED_MOUNTS = (PLAN_DIRECTORY, "/mnt/finetune", "/dev/shm", "/tmp")
RESERVED_ENV_PREFIX = "FINETUNE_"
SOURCE_SLOTS: dict[str, Callable[[FineTuneJobSpec], str | None]] = {
    "adapter": lambda s: s.method.resume_adapter,
    "reference": lambda s: s.objective.reference_model,
    "reward": lambda s: s.objective.reward_model,
    "resume": lambda s: s.checkpoint.resume if s.checkpoint.resume.startswith("pvc://") else None,
    "checkpoints": lambda s: storage if (storage := s.checkpoint.storage or "").startswith("pvc://") else None,
}
"""Volumes that only some jobs have: of these their names are taken."""
SECRET_ENV = {
    ENV_HF_TOKEN: "model.tokenSecretRef",
    "HUGGING_FACE_HUB_TOKEN": "model.tokenSecretRef",
    ENV_WANDB_API_KEY: "observability.wandbSecretRef",
}
SECRET_ENV_MARKS = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "ACCESS_KEY")
VOLUME_SOURCES = tuple(name for name in Volume.model_fields if name != "name")
WHOLE = [name for name, method in METHODS.items() if not method.adapter]
"""Methods that train weights of the model itself."""
BESIDE = [name for name, method in METHODS.items() if not method.mergeable]
"""Methods whose result can't be one model without the adapter."""
REWARDED = objectives.list_taking("rewardFunctions")
GROUPED: list[objectives.ObjectiveType] = ["grpo", "rloo"]
"""Objectives that compare the answers to one prompt with each other."""
RANK = 16
"""Of low-rank adapters when the job says none."""
ELASTIC_SHARE = 12
"""Most batches that a step may need for the sake of an elastic job's numbers of nodes."""
OFFLOADED = ("optimizer", "parameters")
SEARCHED = [name for name in OBJECTIVES if find_search_refusal(name, "single", False) is None]
SEARCHING = [name for name in STRATEGIES if find_search_refusal("sft", name, False) is None]
"""Objectives and strategies whose batch size can be found by trying."""
STREAMED = [name for name, objective in OBJECTIVES.items() if objective.rows == "language"]
"""Objectives whose rows can be a stream."""
CLASSIFYING = [name for name, objective in OBJECTIVES.items() if objective.classifies]
CACHED: list[methods.MethodType] = ["prefix", "p-tuning-v2"]
"""Methods whose virtual tokens are a cache of keys and values."""
BITSANDBYTES = ["adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]
"""Optimisers of bitsandbytes."""
SHARING = [name for name, strategy in STRATEGIES.items() if strategy.engine != "none"]


def count_local_processes(spec: FineTuneJobSpec) -> int:
    """Of each node: one for each GPU; without GPUs as many as the job says."""
    return spec.resources.gpu.count or spec.parallelism.processes or 1


def count_processes(spec: FineTuneJobSpec) -> int:
    """Of all nodes together."""
    return spec.parallelism.nodes * count_local_processes(spec)


def find_elastic_share(spec: FineTuneJobSpec) -> int:
    """What gradientAccumulation has to be a multiple of, so that the batches of a step are dealt out evenly to every number
    of nodes that there may be."""
    nodes, elastic = spec.parallelism.nodes, spec.parallelism.elastic
    fewest = nodes if elastic is None else min(nodes, elastic.min_nodes)
    return math.lcm(*(number // math.gcd(number, nodes) for number in range(fewest, nodes + 1)))


def _uneven_elastic(spec: FineTuneJobSpec) -> Iterator[Hit]:
    training, share = spec.training, find_elastic_share(spec)
    if spec.parallelism.elastic is None:
        return
    if share > ELASTIC_SHARE:
        yield "parallelism.elastic.minNodes", spec.parallelism.elastic.min_nodes
    elif training.gradient_accumulation is not None and training.gradient_accumulation % share:
        yield "training.gradientAccumulation", training.gradient_accumulation
    elif training.global_batch_size is not None and training.global_batch_size % (count_processes(spec) * share):
        yield "training.globalBatchSize", training.global_batch_size


def find_strategy(spec: FineTuneJobSpec) -> StrategyType | None:
    """The strategy that the job names, or that its offload leaves; None: it is still to be chosen."""
    offload = spec.parallelism.offload
    if spec.parallelism.strategy is not None:
        return spec.parallelism.strategy
    if spec.parallelism.elastic is not None:
        return "ddp"
    if offload.parameters != "none" or offload.optimizer == "nvme":
        return "zero3"
    return "zero2" if offload.optimizer == "cpu" else None


# The same in CEL, of the spec; the strategy is '' where it is still to be chosen.
_STRATEGY = "(has(self.parallelism.strategy) ? self.parallelism.strategy : has(self.parallelism.elastic) ? 'ddp' : self.parallelism.offload.parameters != 'none' || self.parallelism.offload.optimizer == 'nvme' ? 'zero3' : self.parallelism.offload.optimizer == 'cpu' ? 'zero2' : '')"
_PROCESSES = "(self.parallelism.nodes * (self.resources.gpu.count > 0 ? self.resources.gpu.count : has(self.parallelism.processes) ? self.parallelism.processes : 1))"


@dataclass(frozen=True)
class Rule:
    """One rule between fields of a FineTuneJob's spec."""

    name: str
    find: Callable[[FineTuneJobSpec], Iterator[Hit]]
    """Yields a hit for each violation."""
    message: str
    mend: str
    at: str = ""
    """Path below spec of the object that ``cel`` speaks of as ``self``."""
    cel: str | None = None
    """True when the rule holds. None: the API server can't know."""
    names: str | None = None
    """Path below spec of the field that the API server names; None: the one that ``find`` names, or ``at``."""

    @property
    def field(self) -> str:
        """Path below spec of the field that the API server names."""
        return self.names or (self.find.path if isinstance(self.find, _When) else self.at)


@dataclass(frozen=True)
class _When:
    """A rule that always speaks of one field."""

    condition: Callable[[FineTuneJobSpec], bool]
    path: str
    value: Callable[[Any], Any]  # of the spec, once the condition holds: what it names is set

    def __call__(self, spec: FineTuneJobSpec) -> Iterator[Hit]:
        if self.condition(spec):
            yield self.path, self.value(spec)


def _hub_only(section: str, fields: dict[str, str]) -> Callable[[FineTuneJobSpec], Iterator[Hit]]:
    def find(spec: FineTuneJobSpec) -> Iterator[Hit]:
        part = getattr(spec, section)
        if not part.source.startswith("hf://"):
            for field, alias in fields.items():
                if (value := getattr(part, field)) is not None:
                    yield f"{section}.{alias}", value

    return find


def _env_conflicts(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, variable in enumerate(spec.pod_template.env or ()):
        if variable.name.startswith(RESERVED_ENV_PREFIX):
            yield f"podTemplate.env[{index}].name", variable.name


def _plain_secrets(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, variable in enumerate(spec.pod_template.env or ()):
        secret = variable.name in SECRET_ENV or any(mark in variable.name.upper() for mark in SECRET_ENV_MARKS)
        if secret and variable.value:
            yield f"podTemplate.env[{index}].value", f"(value of {variable.name} not shown)"


def _env_sources(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, variable in enumerate(spec.pod_template.env or ()):
        if variable.value is not None and variable.value_from is not None:
            yield f"podTemplate.env[{index}]", variable.name
        elif variable.value_from is not None and len(variable.value_from.model_fields_set) != 1:
            yield f"podTemplate.env[{index}].valueFrom", variable.name


def _env_duplicates(spec: FineTuneJobSpec) -> Iterator[Hit]:
    seen = set()
    for index, variable in enumerate(spec.pod_template.env or ()):
        if variable.name in seen:
            yield f"podTemplate.env[{index}].name", variable.name
        seen.add(variable.name)


def _env_from_sources(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, source in enumerate(spec.pod_template.env_from or ()):
        if (source.config_map_ref is None) == (source.secret_ref is None):
            yield f"podTemplate.envFrom[{index}]", source.model_dump(by_alias=True, exclude_none=True)


def _volume_sources(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, volume in enumerate(spec.pod_template.volumes or ()):
        if sum(getattr(volume, source) is not None for source in VOLUME_SOURCES) != 1:
            yield f"podTemplate.volumes[{index}]", volume.name


def _volume_names(spec: FineTuneJobSpec) -> Iterator[Hit]:
    seen = set(RESERVED_VOLUMES)
    for index, volume in enumerate(spec.pod_template.volumes or ()):
        if volume.name in seen:
            yield f"podTemplate.volumes[{index}].name", volume.name
        seen.add(volume.name)


def _mounted_volumes(spec: FineTuneJobSpec) -> Iterator[Hit]:
    known = {volume.name for volume in spec.pod_template.volumes or ()}
    for index, mount in enumerate(spec.pod_template.volume_mounts or ()):
        if mount.name not in known:
            yield f"podTemplate.volumeMounts[{index}].name", mount.name


def _inside(path: str, folder: str) -> bool:
    return (path.rstrip("/") + "/").startswith(folder.rstrip("/") + "/")


def _reserved_mounts(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, mount in enumerate(spec.pod_template.volume_mounts or ()):
        if any(
            _inside(mount.mount_path, reserved) or _inside(reserved, mount.mount_path) for reserved in RESERVED_MOUNTS
        ):
            yield f"podTemplate.volumeMounts[{index}].mountPath", mount.mount_path


def _lost_output(spec: FineTuneJobSpec) -> Iterator[Hit]:
    destination = spec.output.destination or ""
    if destination.startswith("file://"):
        path = destination.removeprefix("file://")
        if not any(_inside(path, mount.mount_path) for mount in spec.pod_template.volume_mounts or ()):
            yield "output.destination", destination


def _mount_duplicates(spec: FineTuneJobSpec) -> Iterator[Hit]:
    seen = set()
    for index, mount in enumerate(spec.pod_template.volume_mounts or ()):
        if mount.mount_path in seen:
            yield f"podTemplate.volumeMounts[{index}].mountPath", mount.mount_path
        seen.add(mount.mount_path)


def _selector_values(spec: FineTuneJobSpec) -> Iterator[Hit]:
    affinity = spec.resources.affinity
    for path, requirement in _requirements(affinity, "resources.affinity") if affinity else ():
        values = requirement.values or ()
        match requirement.operator:
            case "In" | "NotIn":
                fits = len(values) > 0
            case "Exists" | "DoesNotExist":
                fits = not values
            case _:
                fits = len(values) == 1 and values[0].isdecimal()
        if not fits:
            yield f"{path}.values", list(values)


def _requirements(
    part: ApiModel, path: str
) -> Iterator[tuple[str, NodeSelectorRequirement | LabelSelectorRequirement]]:
    """Every condition on labels or fields below ``part``, with its path."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        for suffix, item in (
            [(f"[{index}]", item) for index, item in enumerate(value)] if isinstance(value, list) else [("", value)]
        ):
            below = f"{path}.{field.alias}{suffix}"
            if isinstance(item, NodeSelectorRequirement | LabelSelectorRequirement):
                yield below, item
            elif isinstance(item, ApiModel):
                yield from _requirements(item, below)


def _product_selector(spec: FineTuneJobSpec) -> Iterator[Hit]:
    wanted = (spec.resources.node_selector or {}).get(GPU_PRODUCT_LABEL)
    if wanted is not None and spec.resources.gpu.product not in (None, wanted):
        yield f'resources.nodeSelector["{GPU_PRODUCT_LABEL}"]', wanted


def _shared_memory(spec: FineTuneJobSpec) -> Iterator[Hit]:
    shared, memory = spec.resources.shared_memory, spec.resources.memory
    if shared and memory and parse_quantity(shared) > parse_quantity(memory):
        yield "resources.sharedMemory", shared


def _tolerations(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, toleration in enumerate(spec.resources.tolerations or ()):
        if toleration.operator == "Exists" and toleration.value:
            yield f"resources.tolerations[{index}].value", toleration.value
        elif toleration.key is None and toleration.operator != "Exists":
            yield f"resources.tolerations[{index}].operator", toleration.operator
        elif toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            yield f"resources.tolerations[{index}].tolerationSeconds", toleration.toleration_seconds


def _batch_division(spec: FineTuneJobSpec) -> Iterator[Hit]:
    training = spec.training
    rows, share = training.global_batch_size, training.per_device_batch_size
    if rows is not None and share is not None and rows % (share * count_processes(spec)):
        yield "training.globalBatchSize", rows


def _mixture_splits(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, mixture in enumerate(spec.dataset.mixtures or ()):
        if mixture.split is not None and not mixture.source.startswith("hf://"):
            yield f"dataset.mixtures[{index}].split", mixture.split


def _mixture_formats(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, mixture in enumerate(spec.dataset.mixtures or ()):
        if mixture.format not in ("auto", *OBJECTIVES[spec.objective.type].formats):
            yield f"dataset.mixtures[{index}].format", mixture.format


def _gate_bounds(spec: FineTuneJobSpec) -> Iterator[Hit]:
    for index, gate in enumerate(spec.evaluation.gates or ()):
        if (gate.value is None) == (gate.versus_base is None):
            yield f"evaluation.gates[{index}]", gate.metric


def _source_volumes(spec: FineTuneJobSpec) -> Iterator[Hit]:
    taken = {slot for slot, source in SOURCE_SLOTS.items() if source(spec) is not None}
    for index, volume in enumerate(spec.pod_template.volumes or ()):
        if volume.name in taken or (spec.dataset.mixtures and volume.name.startswith("mixture-")):
            yield f"podTemplate.volumes[{index}].name", volume.name


def _searchable(spec: FineTuneJobSpec) -> bool:
    strategy = find_strategy(spec)
    return spec.objective.type in SEARCHED and (
        count_processes(spec) == 1 if strategy is None else strategy in SEARCHING
    )


def _needs_all_rows(spec: FineTuneJobSpec) -> bool:
    dataset, training = spec.dataset, spec.training
    return (
        spec.objective.type not in STREAMED
        or (dataset.validation is not None and dataset.validation.fraction is not None)
        or dataset.mixtures is not None
        or training.packing != "none"
        or training.padding_free
        or training.auto_find_batch_size is True
    )


def _written_figures(spec: FineTuneJobSpec) -> Iterator[Hit]:
    if spec.objective.type in CLASSIFYING:
        for name in ("metrics", "harness"):
            if (value := getattr(spec.evaluation, name)) is not None:
                yield f"evaluation.{name}", _dump(value)


def _alike_answers(spec: FineTuneJobSpec) -> Iterator[Hit]:
    training = spec.training
    rows, share, batches = training.global_batch_size, training.per_device_batch_size, training.gradient_accumulation
    if rows is None and share is not None and batches is not None:
        rows = share * batches * count_processes(spec)
    completions = (spec.objective.generation or Generation()).completions
    if spec.objective.type in REWARDED and rows is not None and rows % completions:
        yield "objective.generation.completions", completions


def _needless_offload(spec: FineTuneJobSpec) -> Iterator[Hit]:
    """What is to wait elsewhere although the strategy shares it not out."""
    strategy = spec.parallelism.strategy
    for part in OFFLOADED:
        target = getattr(spec.parallelism.offload, part)
        if target != "none" and strategy is not None and part not in STRATEGIES[strategy].shards:
            yield f"parallelism.offload.{part}", target


def _offload_to(spec: FineTuneJobSpec, *targets: str) -> Iterator[Hit]:
    for part in OFFLOADED:
        if (target := getattr(spec.parallelism.offload, part)) in targets:
            yield f"parallelism.offload.{part}", target


def _sharing(part: str) -> list[str]:
    """Strategies that share a part out."""
    return [name for name, strategy in STRATEGIES.items() if part in strategy.shards]


def name_settings_rule(section: str, setting: str) -> str:
    """Such as method-target-modules."""
    return f"{section}-{to_snake(setting).replace('_', '-')}"


def _list_settings_rules() -> Iterator[Rule]:
    """In the order of the fields."""
    for field in Method.model_fields.values():
        if field.alias in methods.SETTINGS:
            yield _build_settings_rule("method", field.alias, methods.list_taking(field.alias))
    for field in Objective.model_fields.values():
        if field.alias in objectives.SETTINGS:
            yield _build_settings_rule("objective", field.alias, objectives.list_taking(field.alias))


def _build_settings_rule(section: str, setting: str, takers: Sequence[str]) -> Rule:
    """A setting stands only where the chosen method or objective takes it."""

    def read(spec: FineTuneJobSpec) -> Any:
        return getattr(getattr(spec, section), to_snake(setting))

    return Rule(
        name_settings_rule(section, setting),
        _When(lambda s: read(s) is not None and getattr(s, section).type not in takers, f"{section}.{setting}", lambda s: _dump(read(s))),
        f"{setting} is for {', '.join(takers)} only",
        f"drop it, or set {section}.type to {'that' if len(takers) == 1 else 'one of them'}",
        section, f"!has(self.{setting}) || self.type in {list(takers)}",
    )  # fmt: skip


def _dump(value: Any) -> Any:
    return value.model_dump(by_alias=True, exclude_none=True) if isinstance(value, ApiModel) else value


def _build_format_rule(objective: objectives.ObjectiveType) -> Rule:
    """The rows an objective needs come of some formats only; auto is judged by the trainer, which sees the columns."""
    fitting = ["auto", *OBJECTIVES[objective].formats]

    return Rule(
        f"format-{objective}",
        _When(lambda s: s.objective.type == objective and s.dataset.format not in fitting, "dataset.format", lambda s: s.dataset.format),
        f"{objective} learns from rows of format {', '.join(OBJECTIVES[objective].formats)}",
        "convert the rows, or choose another objective",
        "", f"self.objective.type != '{objective}' || self.dataset.format in {fitting}",
    )  # fmt: skip


def _build_packing_rule(setting: PackingSetting, written: Callable[[FineTuneJobSpec], Any], cel: str) -> Rule:
    """``cel``: holds when the setting is off."""
    apart = [name for name in METHODS if find_packing_refusal(setting, name, "sft", False) is None]
    whole = [name for name in OBJECTIVES if find_packing_refusal(setting, "lora", name, False) is None]
    return Rule(
        setting,
        _When(lambda s: bool(written(s)) and not (s.method.type in apart and s.objective.type in whole), f"training.{setting}", written),
        f"{setting} puts rows into one sequence, which takes an objective of single rows ({', '.join(whole)}) and a method that keeps position ids (not {', '.join(name for name in METHODS if name not in apart)})",
        "leave it out, or choose such an objective and method",
        "", f"{cel} || (self.method.type in {apart} && self.objective.type in {whole})",
    )  # fmt: skip


def _build_matrix_rule(exclusion: matrix.Exclusion) -> Rule:
    """One reason of the table method x objective x strategy. It names what is easiest to choose otherwise."""
    axes = {
        "parallelism.strategy": exclusion.strategies,
        "method.type": exclusion.methods,
        "objective.type": exclusion.objectives,
    }
    axes = {path: refused for path, refused in axes.items() if refused}

    def find(spec: FineTuneJobSpec) -> Iterator[Hit]:
        chosen = {
            "parallelism.strategy": find_strategy(spec),
            "method.type": spec.method.type,
            "objective.type": spec.objective.type,
        }
        if exclusion.covers(spec.method.type, spec.objective.type, find_strategy(spec)):
            path = next(iter(axes))
            yield path, chosen[path]

    terms = [
        f"{_STRATEGY if path == 'parallelism.strategy' else f'self.{path}'} in {list(refused)}"
        for path, refused in axes.items()
    ]
    return Rule(
        f"matrix-{exclusion.name}", find, exclusion.reason, exclusion.instead, "", f"!({' && '.join(terms)})", names=next(iter(axes))
    )  # fmt: skip


def _list_stranded_rules() -> Iterator[Rule]:
    """Method and objective that no strategy of several processes trains, on several processes."""
    stranded = {
        method: [
            name
            for name in OBJECTIVES
            if not matrix.find_exclusion(method, name, "single")
            and all(matrix.find_exclusion(method, name, each) for each in SHARING)
        ]
        for method in METHODS
    }
    stranded = {method: found for method, found in stranded.items() if found}
    if not stranded:
        return

    def is_stranded(spec: FineTuneJobSpec) -> bool:
        several = find_strategy(spec) is None and count_processes(spec) > 1
        return several and spec.objective.type in stranded.get(spec.method.type, ())

    pairs = " || ".join(
        f"(self.method.type == '{method}' && self.objective.type in {found})" for method, found in stranded.items()
    )
    yield Rule(
        "matrix-stranded",
        _When(is_stranded, "resources.gpu.count", lambda s: s.resources.gpu.count),
        "the method and the objective go together on one process only",
        "ask for one GPU, or see the table in docs/reference/methods.md for what goes together",
        "", f"{_STRATEGY} != '' || {_PROCESSES} == 1 || !({pairs})",
    )  # fmt: skip


_ENV = "!has(self.env) || "
_VOLUME_COUNT = " + ".join(
    f"(has(v.{field.alias}) ? 1 : 0)" for name, field in Volume.model_fields.items() if name != "name"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "length-once",
        _When(lambda s: s.training.epochs is not None and s.training.max_steps is not None, "training.maxSteps", lambda s: s.training.max_steps),
        "epochs and maxSteps exclude each other",
        "keep the one you mean",
        "training", "!(has(self.epochs) && has(self.maxSteps))",
    ),
    Rule(
        "batch-once",
        _When(lambda s: s.training.gradient_accumulation is not None and s.training.global_batch_size is not None, "training.gradientAccumulation", lambda s: s.training.gradient_accumulation),
        "gradientAccumulation follows from globalBatchSize",
        "keep the one you mean",
        "training", "!(has(self.gradientAccumulation) && has(self.globalBatchSize))",
    ),
    Rule(
        "batch-divides",
        _batch_division,
        "globalBatchSize must be a multiple of perDeviceBatchSize x processes (one a GPU)",
        "choose a multiple, or leave perDeviceBatchSize out",
        "", f"!has(self.training.globalBatchSize) || !has(self.training.perDeviceBatchSize) || self.training.globalBatchSize % (self.training.perDeviceBatchSize * {_PROCESSES}) == 0",
        names="training.globalBatchSize",
    ),
    Rule(
        "validation-one-of",
        _When(lambda s: s.dataset.validation is not None and (s.dataset.validation.source is None) == (s.dataset.validation.fraction is None), "dataset.validation", lambda s: s.dataset.validation.model_dump(by_alias=True, exclude_none=True)),
        "needs exactly one of source and fraction",
        "set source to a file of its own, or fraction such as 0.1",
        "dataset.validation", "has(self.source) != has(self.fraction)",
    ),
    Rule(
        "evaluation-needs-data",
        _When(lambda s: s.evaluation.every_steps is not None and s.dataset.validation is None, "evaluation.everySteps", lambda s: s.evaluation.every_steps),
        "there is no validation data to evaluate on",
        "set dataset.validation.fraction (such as 0.1) or dataset.validation.source",
        "", "!has(self.evaluation.everySteps) || has(self.dataset.validation)",
    ),
    Rule(
        "metrics-need-data",
        _When(lambda s: s.evaluation.metrics is not None and s.dataset.validation is None, "evaluation.metrics", lambda s: s.evaluation.metrics),
        "there are no validation rows to measure them on",
        "set dataset.validation.fraction (such as 0.1) or dataset.validation.source",
        "", "!has(self.evaluation.metrics) || has(self.dataset.validation)",
    ),
    Rule(
        "best-needs-data",
        _When(lambda s: s.checkpoint.keep_best and s.dataset.validation is None, "checkpoint.keepBest", lambda s: True),
        "without validation data no checkpoint is the best",
        "set dataset.validation.fraction (such as 0.1) or dataset.validation.source",
        "", "!self.checkpoint.keepBest || has(self.dataset.validation)",
    ),
    Rule(
        "stopping-needs-data",
        _When(lambda s: s.training.early_stopping is not None and s.dataset.validation is None, "training.earlyStopping", lambda s: _dump(s.training.early_stopping)),
        "without validation data nobody knows when it stops to improve",
        "set dataset.validation.fraction (such as 0.1) or dataset.validation.source",
        "", "!has(self.training.earlyStopping) || has(self.dataset.validation)",
    ),
    Rule(
        "gate-one-of",
        _gate_bounds,
        "a gate needs exactly one of value and versusBase",
        "set value to a figure, or versusBase to a difference from the base model's",
        "evaluation", "!has(self.gates) || self.gates.all(g, has(g.value) != has(g.versusBase))",
        names="evaluation.gates",
    ),
    Rule(
        "figures-of-answers",
        _written_figures,
        f"what {', '.join(CLASSIFYING)} trains scores instead of writing",
        "leave metrics and harness out, and set gates on loss",
        "", f"!(self.objective.type in {CLASSIFYING}) || (!has(self.evaluation.metrics) && !has(self.evaluation.harness))",
        names="evaluation",
    ),
    Rule(
        "perplexity-of-language",
        _When(lambda s: "perplexity" in (s.evaluation.metrics or ()) and OBJECTIVES[s.objective.type].rows != "language", "evaluation.metrics", lambda s: s.evaluation.metrics),
        f"perplexity is of a cross-entropy, the loss of {' and '.join(STREAMED)}",
        "leave perplexity out",
        "", f"self.objective.type in {STREAMED} || !has(self.evaluation.metrics) || !('perplexity' in self.evaluation.metrics)",
    ),
    Rule(
        "streaming-steps",
        _When(lambda s: s.dataset.streaming and s.training.max_steps is None, "dataset.streaming", lambda s: True),
        "rows that stream in were never counted and make no epoch",
        "set training.maxSteps instead of epochs",
        "", "!self.dataset.streaming || has(self.training.maxSteps)",
    ),
    Rule(
        "streaming-rows",
        _When(lambda s: s.dataset.streaming and _needs_all_rows(s), "dataset.streaming", lambda s: True),
        f"validation.fraction, mixtures, packing, paddingFree and autoFindBatchSize need all rows at once, and only {' and '.join(STREAMED)} learn from a stream",
        "set validation.source and leave the others out, or leave streaming out",
        "", f"!self.dataset.streaming || (self.objective.type in {STREAMED} && !(has(self.dataset.validation) && has(self.dataset.validation.fraction)) && !has(self.dataset.mixtures) && self.training.packing == 'none' && !self.training.paddingFree && !(has(self.training.autoFindBatchSize) && self.training.autoFindBatchSize))",
    ),
    Rule(
        "cleaning-lengths",
        _When(lambda s: (s.dataset.cleaning.min_length or 0) > (s.dataset.cleaning.max_length or math.inf), "dataset.cleaning.minLength", lambda s: s.dataset.cleaning.min_length),
        "no row is longer than minLength and shorter than maxLength",
        "lower minLength, or raise maxLength",
        "dataset.cleaning", "!has(self.minLength) || !has(self.maxLength) || self.minLength <= self.maxLength",
    ),
    Rule(
        "mixture-format",
        _mixture_formats,
        "rows of this format are not what the objective learns from",
        "use a format that dataset.format may have for the objective",
        "", "!has(self.dataset.mixtures) || self.dataset.mixtures.all(m, " + " && ".join(f"(!(self.objective.type in {[name for name, each in OBJECTIVES.items() if each.rows == rows]}) || m.format in {['auto', *formats]})" for rows, formats in objectives.FORMATS.items()) + ")",
        names="dataset.mixtures",
    ),
    Rule(
        "mixture-hub-only",
        _mixture_splits,
        "only hub sources (hf://) of mixtures have splits",
        "drop it, or use an hf:// source",
        "dataset", "!has(self.mixtures) || self.mixtures.all(m, !has(m.split) || m.source.startsWith('hf://'))",
        names="dataset.mixtures",
    ),
    Rule(
        "cache-one-of",
        _When(lambda s: s.model.cache is not None and (s.model.cache.claim_name is None) == (s.model.cache.size is None), "model.cache", lambda s: s.model.cache.model_dump(by_alias=True, exclude_none=True)),
        "needs exactly one of claimName and size",
        "set claimName to use an existing claim, or size to make one",
        "model.cache", "has(self.claimName) != has(self.size)",
    ),
    Rule(
        "cache-class-needs-size",
        _When(lambda s: s.model.cache is not None and s.model.cache.storage_class is not None and s.model.cache.size is None, "model.cache.storageClass", lambda s: s.model.cache.storage_class),
        "storageClass is only for a claim that is made, by size",
        "set size, or drop storageClass",
        "model.cache", "!has(self.storageClass) || has(self.size)",
    ),
    Rule(
        "model-hub-only",
        _hub_only("model", {"revision": "revision", "token_secret_ref": "tokenSecretRef"}),
        "revision and tokenSecretRef are for hub sources (hf://) only",
        "drop it, or use an hf:// source",
        "model", "self.source.startsWith('hf://') || (!has(self.revision) && !has(self.tokenSecretRef))",
    ),
    Rule(
        "dataset-hub-only",
        _hub_only("dataset", {"split": "split"}),
        "only hub sources (hf://) have splits",
        "drop it, or use an hf:// source",
        "dataset", "self.source.startsWith('hf://') || !has(self.split)",
        names="dataset.split",
    ),
    Rule(
        "all-linear-alone",
        _When(lambda s: "all-linear" in (s.method.target_modules or ()) and len(s.method.target_modules or ()) > 1, "method.targetModules", lambda s: s.method.target_modules),
        "all-linear already names every linear module",
        "keep all-linear alone, or list the modules without it",
        "method", "!has(self.targetModules) || !('all-linear' in self.targetModules) || size(self.targetModules) == 1",
    ),
    Rule(
        "quantization-bits",
        _When(lambda s: (asked := s.method.quantization) is not None and asked.type is not None and (asked.type == "int8") != (asked.bits == 8), "method.quantization.type", lambda s: s.method.quantization.type),
        "nf4 and fp4 have 4 bits, int8 has 8",
        "leave type out, or mend bits",
        "method.quantization", "!has(self.type) || (self.type == 'int8') == (self.bits == 8)",
    ),
    Rule(
        "initial-rank",
        _When(lambda s: s.method.initial_rank is not None and s.method.initial_rank <= (s.method.rank or RANK), "method.initialRank", lambda s: s.method.initial_rank),
        "adalora only cuts ranks, so the first one has to be above the last",
        f"raise it above method.rank ({RANK} when absent)",
        "method", f"!has(self.initialRank) || self.initialRank > (has(self.rank) ? self.rank : {RANK})",
    ),
    Rule(
        "rewarded",
        _When(lambda s: s.objective.type in REWARDED and s.objective.reward_model is None and s.objective.reward_functions is None, "objective.rewardFunctions", lambda s: None),
        "nothing scores the answers",
        "set rewardFunctions, such as [exact-match], or rewardModel",
        "", f"!(self.objective.type in {REWARDED}) || has(self.objective.rewardModel) || has(self.objective.rewardFunctions)",
    ),
    Rule(
        "loss-weights",
        _When(lambda s: s.objective.loss_weights is not None and len(s.objective.loss_weights) != len(s.objective.losses or ["sigmoid"]), "objective.lossWeights", lambda s: s.objective.loss_weights),
        "needs one weight for each of objective.losses (one loss when absent)",
        "write as many weights as losses",
        "objective", "!has(self.lossWeights) || size(self.lossWeights) == (has(self.losses) ? size(self.losses) : 1)",
    ),
    Rule(
        "smoothed-losses",
        _When(lambda s: "exo_pair" in (s.objective.losses or ()) and not s.objective.label_smoothing, "objective.losses", lambda s: s.objective.losses),
        "exo_pair takes the logarithm of labelSmoothing, which is 0",
        "set labelSmoothing, such as 0.001 (the paper's)",
        "objective", "!has(self.losses) || !('exo_pair' in self.losses) || (has(self.labelSmoothing) && self.labelSmoothing > 0.0)",
    ),
    Rule(
        "kto-compares-rows",
        _When(lambda s: s.objective.type == "kto" and s.training.per_device_batch_size == 1, "training.perDeviceBatchSize", lambda s: 1),
        "kto estimates the distance to the reference from the other rows of a batch",
        "use 2 or more",
        "", "self.objective.type != 'kto' || !has(self.training.perDeviceBatchSize) || self.training.perDeviceBatchSize > 1",
    ),
    Rule(
        "completions-compared",
        _When(lambda s: s.objective.type in GROUPED and s.objective.generation is not None and s.objective.generation.completions == 1, "objective.generation.completions", lambda s: 1),
        f"{' and '.join(GROUPED)} compare answers to the same prompt",
        "use 2 or more",
        "", f"!(self.objective.type in {GROUPED}) || !has(self.objective.generation) || self.objective.generation.completions > 1",
    ),
    Rule(
        "completions-divide",
        _alike_answers,
        "the answers to one prompt (8 when absent) must fit the rows of an optimiser step: globalBatchSize, or perDeviceBatchSize x gradientAccumulation x processes",
        "choose a number that divides those rows, or leave gradientAccumulation out",
        "", f"!(self.objective.type in {REWARDED}) || (has(self.training.globalBatchSize) ? self.training.globalBatchSize : has(self.training.perDeviceBatchSize) && has(self.training.gradientAccumulation) ? self.training.perDeviceBatchSize * self.training.gradientAccumulation * {_PROCESSES} : 0) % (has(self.objective.generation) ? self.objective.generation.completions : {Generation().completions}) == 0",
        names="objective.generation.completions",
    ),
    Rule(
        "single-is-one",
        _When(lambda s: s.parallelism.strategy == "single" and count_processes(s) > 1, "parallelism.strategy", lambda s: "single"),
        "one process, and the job has more (one a GPU)",
        "leave strategy out, or ask for one GPU",
        "", f"!has(self.parallelism.strategy) || self.parallelism.strategy != 'single' || {_PROCESSES} == 1",
    ),
    Rule(
        "strategy-shares",
        _When(lambda s: s.parallelism.strategy in SHARING and count_processes(s) == 1 and not list(_offload_to(s, "cpu", "nvme")), "parallelism.strategy", lambda s: s.parallelism.strategy),
        "one process has nobody to share with, and nothing is offloaded",
        "leave strategy out, raise resources.gpu.count, or set parallelism.offload",
        "", f"!has(self.parallelism.strategy) || !(self.parallelism.strategy in {SHARING}) || {_PROCESSES} > 1 || self.parallelism.offload.optimizer != 'none' || self.parallelism.offload.parameters != 'none'",
    ),
    Rule(
        "processes-without-gpus",
        _When(lambda s: s.parallelism.processes is not None and s.resources.gpu.count > 0, "parallelism.processes", lambda s: s.parallelism.processes),
        "with GPUs there is one process for each",
        "drop it, or set resources.gpu.count to 0",
        "", "!has(self.parallelism.processes) || self.resources.gpu.count == 0",
    ),
    Rule(
        "elastic-of-several",
        _When(lambda s: (e := s.parallelism.elastic) is not None and e.min_nodes >= s.parallelism.nodes, "parallelism.elastic.minNodes", lambda s: s.parallelism.elastic.min_nodes),
        "has to be less than parallelism.nodes, the most there can be",
        "lower it, raise nodes, or drop elastic",
        "parallelism", "!has(self.elastic) || self.elastic.minNodes < self.nodes",
    ),
    Rule(
        "elastic-is-ddp",
        _When(lambda s: s.parallelism.elastic is not None and find_strategy(s) != "ddp", "parallelism.strategy", find_strategy),
        "the checkpoints of an elastic job have to fit any number of nodes, and only with ddp does each hold everything",
        "leave strategy and offload out, or drop elastic",
        "", f"!has(self.parallelism.elastic) || {_STRATEGY} == 'ddp'",
        names="parallelism.strategy",
    ),
    Rule(
        "elastic-share",
        _uneven_elastic,
        "the batches of a step can't be dealt out evenly to every number of nodes from elastic.minNodes to nodes",
        "raise minNodes (2 of 4, or half), choose numbers that divide, or leave gradientAccumulation and globalBatchSize out",
    ),
    Rule(
        "placement-of-several",
        _When(lambda s: s.resources.placement is not None and s.parallelism.nodes == 1, "resources.placement", lambda s: s.resources.placement.model_dump(by_alias=True)),
        "one pod has no other to lie beside",
        "drop it, or raise parallelism.nodes",
        "", "!has(self.resources.placement) || self.parallelism.nodes > 1",
    ),
    Rule(
        "preflight-is-enabled",
        _When(lambda s: not s.preflight.enabled and (s.preflight.min_free_disk or s.preflight.min_bus_bandwidth) is not None, "preflight.enabled", lambda s: s.preflight.enabled),
        "nothing is checked, and preflight has a figure to check",
        "set it to true, or drop the figure",
        "preflight", "self.enabled || (!has(self.minFreeDisk) && !has(self.minBusBandwidth))",
    ),
    Rule(
        "bandwidth-of-several",
        _When(lambda s: s.preflight.min_bus_bandwidth is not None and count_processes(s) == 1, "preflight.minBusBandwidth", lambda s: s.preflight.min_bus_bandwidth),
        "one process reduces with nobody",
        "drop it, or raise parallelism.nodes or resources.gpu.count",
        "", f"!has(self.preflight.minBusBandwidth) || {_PROCESSES} > 1",
    ),
    Rule(
        "budget-needs-gpu",
        _When(lambda s: s.resources.gpu.count == 0 and (s.budget.max_gpu_hours or s.budget.max_cost) is not None, "budget", lambda s: s.budget.model_dump(by_alias=True, exclude_none=True)),
        "only GPUs are counted, and resources.gpu.count is 0",
        "drop it, or use runPolicy.activeDeadline",
        "", "self.resources.gpu.count > 0 || (!has(self.budget.maxGpuHours) && !has(self.budget.maxCost))",
    ),
    Rule(
        "gang-queue",
        _When(lambda s: (g := s.resources.gang) is not None and g.scheduler != "volcano" and g.queue is not None, "resources.gang.queue", lambda s: s.resources.gang.queue),
        "only Volcano has queues",
        "drop it, or set scheduler to volcano",
        "resources", "!has(self.gang) || !has(self.gang.queue) || self.gang.scheduler == 'volcano'",
    ),
    Rule(
        "gang-timeout",
        _When(lambda s: (g := s.resources.gang) is not None and g.scheduler == "volcano" and g.timeout is not None, "resources.gang.timeout", lambda s: s.resources.gang.timeout),
        "Volcano places a gang at once: no pod of it waits for the others",
        "drop it, or set scheduler to scheduler-plugins",
        "resources", "!has(self.gang) || !has(self.gang.timeout) || self.gang.scheduler != 'volcano'",
    ),
    Rule(
        "checkpoint-schedule",
        _When(lambda s: s.checkpoint.every_steps is not None and s.checkpoint.every_minutes is not None, "checkpoint.everyMinutes", lambda s: s.checkpoint.every_minutes),
        "everySteps says when to save already",
        "keep one of both",
        "checkpoint", "!has(self.everySteps) || !has(self.everyMinutes)",
    ),
    Rule(
        "fallback-when",
        _When(lambda s: (f := s.spot.fallback) is not None and f.after_preemptions is None and f.after_wait is None, "spot.fallback", lambda s: s.spot.fallback.model_dump(by_alias=True, exclude_none=True)),
        "says not when to leave the spot market",
        "set afterPreemptions, afterWait or both",
        "spot", "!has(self.fallback) || has(self.fallback.afterPreemptions) || has(self.fallback.afterWait)",
    ),
    Rule(
        "sharding-is-fsdp",
        _When(lambda s: s.parallelism.sharding is not None and s.parallelism.strategy != "fsdp", "parallelism.sharding", lambda s: s.parallelism.sharding),
        "only fsdp has kinds of sharding",
        "set parallelism.strategy to fsdp, or drop it",
        "parallelism", "!has(self.sharding) || (has(self.strategy) && self.strategy == 'fsdp')",
    ),
    Rule(
        "offload-is-shared",
        _needless_offload,
        "only what the strategy shares out can wait elsewhere: optimiser states for " + ", ".join(_sharing("optimizer")) + ", parameters for " + ", ".join(_sharing("parameters")),
        "set it to none, or choose such a strategy",
        "parallelism", "!has(self.strategy) || (" + " && ".join(f"(self.offload.{part} == 'none' || self.strategy in {_sharing(part)})" for part in OFFLOADED) + ")",
        names="parallelism.offload",
    ),
    Rule(
        "offload-needs-gpu",
        lambda s: _offload_to(s, "cpu", "nvme") if s.resources.gpu.count == 0 else iter(()),
        "there is no GPU memory to leave, resources.gpu.count being 0",
        "set it to none",
        "", "self.resources.gpu.count > 0 || (self.parallelism.offload.optimizer == 'none' && self.parallelism.offload.parameters == 'none')",
        names="parallelism.offload",
    ),
    Rule(
        "offload-to-nvme",
        lambda s: _offload_to(s, "nvme") if s.parallelism.strategy not in (None, "zero3") else iter(()),
        "only zero3 offloads to NVMe",
        "use cpu, or set parallelism.strategy to zero3",
        "parallelism", "!has(self.strategy) || self.strategy == 'zero3' || (self.offload.optimizer != 'nvme' && self.offload.parameters != 'nvme')",
        names="parallelism.offload",
    ),
    Rule(
        "offload-of-fsdp",
        _When(lambda s: s.parallelism.strategy == "fsdp" and s.parallelism.offload.optimizer != s.parallelism.offload.parameters, "parallelism.offload", lambda s: s.parallelism.offload.model_dump()),
        "fsdp offloads parameters and optimiser states together",
        "set both to cpu, or both to none",
        "parallelism", "!has(self.strategy) || self.strategy != 'fsdp' || self.offload.optimizer == self.offload.parameters",
    ),
    Rule(
        "offload-optimizer",
        _When(lambda s: s.parallelism.offload.optimizer != "none" and s.training.optimizer in BITSANDBYTES, "training.optimizer", lambda s: s.training.optimizer),
        "bitsandbytes' optimisers step on the GPU, and parallelism.offload keeps their states elsewhere",
        "use adamw_torch, or set parallelism.offload.optimizer to none",
        "", f"self.parallelism.offload.optimizer == 'none' || !has(self.training.optimizer) || !(self.training.optimizer in {BITSANDBYTES})",
    ),
    Rule(
        "fsdp-bits",
        _When(lambda s: s.parallelism.strategy == "fsdp" and s.method.quantization is not None and s.method.quantization.bits == 8, "method.quantization.bits", lambda s: 8),
        "fsdp can't share out 8-bit weights",
        "use 4 bits, or set parallelism.strategy to zero3",
        "", "!has(self.parallelism.strategy) || self.parallelism.strategy != 'fsdp' || !has(self.method.quantization) || self.method.quantization.bits != 8",
    ),
    Rule(
        "fsdp-optimizer",
        _When(lambda s: s.parallelism.strategy == "fsdp" and s.training.optimizer in BITSANDBYTES, "training.optimizer", lambda s: s.training.optimizer),
        "bitsandbytes' optimisers don't know the sharded tensors of fsdp",
        "use adamw_torch_fused, or set parallelism.strategy to zero3",
        "", f"!has(self.parallelism.strategy) || self.parallelism.strategy != 'fsdp' || !has(self.training.optimizer) || !(self.training.optimizer in {BITSANDBYTES})",
    ),
    _build_packing_rule("packing", lambda s: s.training.packing if s.training.packing != "none" else None, "self.training.packing == 'none'"),
    _build_packing_rule("paddingFree", lambda s: s.training.padding_free or None, "!self.training.paddingFree"),
    Rule(
        "batch-search",
        _When(lambda s: s.training.auto_find_batch_size is True and not _searchable(s), "training.autoFindBatchSize", lambda s: True),
        f"a batch can be tried for {', '.join(SEARCHED)}, on one process or with parallelism.strategy {' or '.join(SEARCHING[1:])}",
        "leave it out, and lower perDeviceBatchSize if need be",
        "", f"!has(self.training.autoFindBatchSize) || !self.training.autoFindBatchSize || (self.objective.type in {SEARCHED} && ({_STRATEGY} == '' ? {_PROCESSES} == 1 : {_STRATEGY} in {SEARCHING}))",
    ),
    Rule(
        "cpu-activations",
        _When(lambda s: s.training.activation_offload is True and s.resources.gpu.count == 0, "training.activationOffload", lambda s: True),
        "without a GPU the activations are in host memory already",
        "leave it out",
        "", "self.resources.gpu.count > 0 || !has(self.training.activationOffload) || !self.training.activationOffload",
    ),
    Rule(
        "offloading-objectives",
        _When(lambda s: s.training.activation_offload is True and s.objective.type not in OFFLOADING_OBJECTIVES, "training.activationOffload", lambda s: True),
        f"only the trainers of {', '.join(OFFLOADING_OBJECTIVES)} can",
        "use training.gradientCheckpointing",
        "", f"!has(self.training.activationOffload) || !self.training.activationOffload || self.objective.type in {list(OFFLOADING_OBJECTIVES)}",
    ),
    Rule(
        "cached-checkpointing",
        _When(lambda s: s.method.type in CACHED and s.training.gradient_checkpointing is True, "training.gradientCheckpointing", lambda s: True),
        f"the virtual tokens of {' and '.join(CACHED)} are a cache of keys and values, which recomputing does without",
        "leave it out, or use method.type p-tuning",
        "", f"!(self.method.type in {CACHED}) || !has(self.training.gradientCheckpointing) || !self.training.gradientCheckpointing",
    ),
    Rule(
        "cpu-kernels",
        _When(lambda s: s.training.fused_kernels is True and s.resources.gpu.count == 0, "training.fusedKernels", lambda s: True),
        "the kernels run on GPUs only",
        "leave it out",
        "", "self.resources.gpu.count > 0 || !has(self.training.fusedKernels) || !self.training.fusedKernels",
    ),
    Rule(
        "gguf-answers",
        _When(lambda s: s.objective.type in CLASSIFYING and "gguf" in (s.output.artifacts or ()), "output.artifacts", lambda s: s.output.artifacts),
        f"what {', '.join(CLASSIFYING)} trains scores instead of writing, which GGUF files don't",
        "use [adapter], [merged] or both",
        "", f"!(self.objective.type in {CLASSIFYING}) || !has(self.output.artifacts) || !('gguf' in self.output.artifacts)",
    ),
    Rule(
        "gguf-is-made",
        _When(lambda s: s.output.gguf is not None and "gguf" not in (s.output.artifacts or ()), "output.gguf", lambda s: _dump(s.output.gguf)),
        "no GGUF file is made",
        "add gguf to output.artifacts, or drop it",
        "output", "!has(self.gguf) || (has(self.artifacts) && 'gguf' in self.artifacts)",
    ),
    Rule(
        "one-hub-token",
        _When(lambda s: s.output.push_to_hub is not None and s.model.token_secret_ref is not None and s.model.token_secret_ref != s.output.push_to_hub.token_secret_ref, "output.pushToHub.tokenSecretRef", lambda s: s.output.push_to_hub.token_secret_ref.name),
        "differs from model.tokenSecretRef, and the run has one token of the hub",
        "name the same Secret and key, with a token that may read the model and write the repository",
        "", "!has(self.output.pushToHub) || !has(self.model.tokenSecretRef) || (self.output.pushToHub.tokenSecretRef.name == self.model.tokenSecretRef.name && self.output.pushToHub.tokenSecretRef.key == self.model.tokenSecretRef.key)",
    ),
    Rule(
        "no-adapter-to-export",
        _When(lambda s: s.method.type in WHOLE and "adapter" in (s.output.artifacts or ()), "output.artifacts", lambda s: s.output.artifacts),
        f"{' and '.join(WHOLE)} make no adapter",
        "use [merged]: the whole model",
        "", f"!(self.method.type in {WHOLE}) || !has(self.output.artifacts) || !('adapter' in self.output.artifacts)",
    ),
    Rule(
        "adapter-stays-beside",
        _When(lambda s: s.method.type in BESIDE and any(each != "adapter" for each in s.output.artifacts or ()), "output.artifacts", lambda s: s.output.artifacts),
        f"what {', '.join(BESIDE)} train can't be merged into the model",
        "use [adapter]",
        "", f"!(self.method.type in {BESIDE}) || !has(self.output.artifacts) || self.output.artifacts.all(a, a == 'adapter')",
    ),
    Rule(
        "artifacts-once",
        _When(lambda s: len(set(s.output.artifacts or ())) != len(s.output.artifacts or ()), "output.artifacts", lambda s: s.output.artifacts),
        "an artifact is named twice",
        "name each once",
        "output", "!has(self.artifacts) || self.artifacts.all(a, self.artifacts.exists_one(b, a == b))",
    ),
    Rule(
        "trained-float16",
        _When(lambda s: s.method.type in WHOLE and s.model.dtype == "float16", "model.dtype", lambda s: s.model.dtype),
        "float16 weights can't be trained: their gradients can't be scaled",
        "use bfloat16 or float32; precision fp16 works with float32 weights",
        "", f"!(self.method.type in {WHOLE}) || !has(self.model.dtype) || self.model.dtype != 'float16'",
    ),
    Rule(
        "cpu-precision",
        _When(lambda s: s.resources.gpu.count == 0 and s.training.precision in ("fp16", "tf32"), "training.precision", lambda s: s.training.precision),
        "needs a GPU, and resources.gpu.count is 0",
        "use fp32 (or bf16) on a CPU",
        "", "self.resources.gpu.count > 0 || !has(self.training.precision) || !(self.training.precision in ['fp16', 'tf32'])",
    ),
    Rule(
        "cpu-attention",
        _When(lambda s: s.resources.gpu.count == 0 and s.model.attention == "flash_attention_2", "model.attention", lambda s: s.model.attention),
        "needs a GPU, and resources.gpu.count is 0",
        "use sdpa",
        "", "self.resources.gpu.count > 0 || self.model.attention != 'flash_attention_2'",
    ),
    Rule(
        "flash-attention-dtype",
        _When(lambda s: s.model.attention == "flash_attention_2" and s.model.dtype == "float32", "model.dtype", lambda s: s.model.dtype),
        "flash_attention_2 works in bfloat16 and float16 only",
        "use bfloat16, or attention sdpa",
        "model", "self.attention != 'flash_attention_2' || !has(self.dtype) || self.dtype != 'float32'",
    ),
    Rule(
        "cpu-optimizer",
        _When(lambda s: s.resources.gpu.count == 0 and (s.training.optimizer or "").startswith("paged_"), "training.optimizer", lambda s: s.training.optimizer),
        "paged optimisers page out of GPU memory, and resources.gpu.count is 0",
        "use adamw_torch",
        "", "self.resources.gpu.count > 0 || !has(self.training.optimizer) || !self.training.optimizer.startsWith('paged_')",
    ),
    Rule(
        "cpu-product",
        _When(lambda s: s.resources.gpu.count == 0 and s.resources.gpu.product is not None, "resources.gpu.product", lambda s: s.resources.gpu.product),
        "names a GPU, and resources.gpu.count is 0",
        "set count, or drop product",
        "resources.gpu", "self.count > 0 || !has(self.product)",
    ),
    Rule(
        "product-selector",
        _product_selector,
        "contradicts resources.gpu.product",
        "keep one of them",
        "resources", f"!has(self.nodeSelector) || !has(self.gpu.product) || !('{GPU_PRODUCT_LABEL}' in self.nodeSelector) || self.nodeSelector['{GPU_PRODUCT_LABEL}'] == self.gpu.product",
        names="resources.nodeSelector",
    ),
    Rule(
        "shared-memory-fits",
        _shared_memory,
        "/dev/shm counts towards memory and is larger than it",
        "raise resources.memory, or lower sharedMemory",
        "resources", "!has(self.sharedMemory) || !has(self.memory) || quantity(string(self.sharedMemory)).compareTo(quantity(string(self.memory))) <= 0",
        names="resources.sharedMemory",
    ),
    Rule(
        "tolerations",
        _tolerations,
        "the taint can't be matched so: Exists takes no value, no key needs Exists, tolerationSeconds needs effect NoExecute",
        "see Tolerations in the Kubernetes documentation",
        "resources", "!has(self.tolerations) || self.tolerations.all(t, !(has(t.operator) && t.operator == 'Exists' && has(t.value) && t.value != '') && (has(t.key) || (has(t.operator) && t.operator == 'Exists')) && (!has(t.tolerationSeconds) || (has(t.effect) && t.effect == 'NoExecute')))",
        names="resources.tolerations",
    ),
    Rule(
        "text-has-no-response",
        _When(lambda s: s.dataset.format == "text" and s.objective.response_only is True, "objective.responseOnly", lambda s: True),
        "rows of format text have no response to train on",
        "set responseOnly to false, or use a format with responses",
        "", "self.dataset.format != 'text' || !has(self.objective.responseOnly) || !self.objective.responseOnly",
    ),
    Rule(
        "wandb-needs-secret",
        _When(lambda s: "wandb" in (s.observability.trackers or ()) and s.observability.wandb_secret_ref is None, "observability.wandbSecretRef", lambda s: None),
        "the wandb tracker needs an API key",
        "set wandbSecretRef: {name: wandb, key: api-key} and make that Secret",
        "observability", "!has(self.trackers) || !('wandb' in self.trackers) || has(self.wandbSecretRef)",
    ),
    Rule(
        "secret-needs-wandb",
        _When(lambda s: s.observability.wandb_secret_ref is not None and "wandb" not in (s.observability.trackers or ()), "observability.wandbSecretRef", lambda s: s.observability.wandb_secret_ref.name),
        "nothing uses it",
        "add wandb to observability.trackers, or drop it",
        "observability", "!has(self.wandbSecretRef) || (has(self.trackers) && 'wandb' in self.trackers)",
    ),
    Rule(
        "output-volume-or-destination",
        _When(lambda s: s.output.volume is not None and s.output.destination is not None, "output.volume", lambda s: s.output.volume.model_dump(by_alias=True, exclude_none=True)),
        "describes the claim that is made when destination is absent",
        "drop volume, or drop destination",
        "output", "!(has(self.volume) && has(self.destination))",
    ),
    Rule(
        "output-survives",
        _lost_output,
        "is no volume: the result would be lost with the pod",
        "use pvc://claim/path, or mount a volume there by podTemplate.volumeMounts",
        "", "!has(self.output.destination) || !self.output.destination.startsWith('file://') || (has(self.podTemplate.volumeMounts) && self.podTemplate.volumeMounts.exists(m, (self.output.destination + '/').startsWith('file://' + m.mountPath + (m.mountPath.endsWith('/') ? '' : '/'))))",
        names="output.destination",
    ),
    Rule(
        "env-reserved",
        _env_conflicts,
        f"names with the prefix {RESERVED_ENV_PREFIX} are the operator's",
        "choose another name",
        "podTemplate", _ENV + f"self.env.all(e, !e.name.startsWith('{RESERVED_ENV_PREFIX}'))",
        names="podTemplate.env",
    ),
    Rule(
        "env-plain-secret",
        _plain_secrets,
        "a secret must not stand here in plain text",
        "use valueFrom.secretKeyRef (or model.tokenSecretRef, observability.wandbSecretRef)",
        "podTemplate", _ENV + "self.env.all(e, !has(e.value) || e.value == '' || !(" + " || ".join(f"e.name.upperAscii().contains('{mark}')" for mark in SECRET_ENV_MARKS) + "))",
        names="podTemplate.env",
    ),
    Rule(
        "env-one-of",
        _env_sources,
        "needs exactly one of value and one reference in valueFrom",
        "keep the one you mean",
        "podTemplate", _ENV + "self.env.all(e, !(has(e.value) && has(e.valueFrom)) && (!has(e.valueFrom) || (has(e.valueFrom.secretKeyRef) ? 1 : 0) + (has(e.valueFrom.configMapKeyRef) ? 1 : 0) + (has(e.valueFrom.fieldRef) ? 1 : 0) + (has(e.valueFrom.resourceFieldRef) ? 1 : 0) == 1))",
        names="podTemplate.env",
    ),
    Rule(
        "env-once",
        _env_duplicates,
        "the variable is set twice",
        "keep one",
        "podTemplate", _ENV + "self.env.all(e, self.env.exists_one(f, f.name == e.name))",
        names="podTemplate.env",
    ),
    Rule(
        "env-from-one-of",
        _env_from_sources,
        "needs exactly one of configMapRef and secretRef",
        "make two entries of it",
        "podTemplate", "!has(self.envFrom) || self.envFrom.all(e, has(e.configMapRef) != has(e.secretRef))",
        names="podTemplate.envFrom",
    ),
    Rule(
        "volume-one-of",
        _volume_sources,
        "needs exactly one volume source",
        "set one, such as persistentVolumeClaim: {claimName: data}",
        "podTemplate", f"!has(self.volumes) || self.volumes.all(v, {_VOLUME_COUNT} == 1)",
        names="podTemplate.volumes",
    ),
    Rule(
        "volume-names",
        _volume_names,
        "the volume's name is taken (twice in the list, or the operator's own: " + ", ".join(sorted(RESERVED_VOLUMES)) + ")",
        "choose another name",
        "podTemplate", f"!has(self.volumes) || self.volumes.all(v, !(v.name in {sorted(RESERVED_VOLUMES)}) && self.volumes.exists_one(w, w.name == v.name))",
        names="podTemplate.volumes",
    ),
    Rule(
        "volume-sources",
        _source_volumes,
        "the volume's name is that of a source of this job (adapter, reference, reward, mixture-0, ...)",
        "name it otherwise",
        "", "!has(self.podTemplate.volumes) || self.podTemplate.volumes.all(v, !(has(self.method.resumeAdapter) && v.name == 'adapter') && !(has(self.objective.referenceModel) && v.name == 'reference') && !(has(self.objective.rewardModel) && v.name == 'reward') && !(has(self.dataset.mixtures) && v.name.startsWith('mixture-')))",
        names="podTemplate.volumes",
    ),
    Rule(
        "mount-known",
        _mounted_volumes,
        "podTemplate.volumes has no volume of that name",
        "add the volume, or mend the name",
        "podTemplate", "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))",
        names="podTemplate.volumeMounts",
    ),
    Rule(
        "mount-reserved",
        _reserved_mounts,
        "the path is the operator's own (" + ", ".join(RESERVED_MOUNTS) + ")",
        "mount it elsewhere",
        "podTemplate", "!has(self.volumeMounts) || self.volumeMounts.all(m, " + " && ".join(f"!((m.mountPath + '/').startsWith('{path}/') || '{path}/'.startsWith(m.mountPath.endsWith('/') ? m.mountPath : m.mountPath + '/'))" for path in RESERVED_MOUNTS) + ")",
        names="podTemplate.volumeMounts",
    ),
    Rule(
        "mount-once",
        _mount_duplicates,
        "two volumes are mounted at one path",
        "choose another path for one of them",
        "podTemplate", "!has(self.volumeMounts) || self.volumeMounts.all(m, self.volumeMounts.exists_one(n, n.mountPath == m.mountPath))",
        names="podTemplate.volumeMounts",
    ),
    Rule(
        "seccomp-profile",
        _When(lambda s: (context := s.pod_template.security_context) is not None and (profile := context.seccomp_profile) is not None and (profile.type == "Localhost") != (profile.localhost_profile is not None), "podTemplate.securityContext.seccompProfile", lambda s: s.pod_template.security_context.seccomp_profile.model_dump(by_alias=True, exclude_none=True)),
        "localhostProfile belongs to type Localhost, and to no other",
        "set both, or drop localhostProfile",
        "podTemplate.securityContext.seccompProfile", "(self.type == 'Localhost') == has(self.localhostProfile)",
    ),
    *_list_settings_rules(),
    *(_build_format_rule(each) for each in OBJECTIVES),
    *(_build_matrix_rule(each) for each in matrix.EXCLUSIONS),
    *_list_stranded_rules(),
    Rule(
        "selector-values",
        _selector_values,
        "In and NotIn need values, Exists and DoesNotExist take none, Gt and Lt take one whole number",
        "mend values, or choose another operator",
    ),
)  # fmt: skip
