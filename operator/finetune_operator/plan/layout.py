"""Where things lie for the trainer's process: in a container, or on the machine of ``finetune run``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from finetune_api.names import PLAN_FILE, TERMINATION_LOG
from finetune_api.plan import ResolvedSource
from finetune_api.spec import FineTuneJobSpec

Slot = str
"""What a folder is for: model, dataset, validation, mixture-0 and so on, adapter, reference, reward, resume,
output or checkpoints."""


class Layout(Protocol):
    """Paths as the trainer's process sees them."""

    @property
    def plan_file(self) -> str:
        """The TrainingPlan."""

    @property
    def cache(self) -> str:
        """Folder for downloads and converted models."""

    @property
    def output(self) -> str:
        """Folder of the output when the job names no destination."""

    @property
    def scratch(self) -> str:
        """Folder on a local disk that lives as long as the process."""

    @property
    def termination_log(self) -> str:
        """File for the trainer's last words."""

    def claim(self, slot: Slot, name: str) -> str:
        """Folder of a PersistentVolumeClaim."""

    def config_map(self, slot: Slot, name: str) -> str:
        """Folder with a ConfigMap's keys as files."""


@dataclass(frozen=True)
class ContainerLayout:
    """Each slot of the job is a mount below /mnt/finetune."""

    plan_file: str = PLAN_FILE
    cache: str = "/mnt/finetune/cache"
    output: str = "/mnt/finetune/output"
    scratch: str = "/tmp/finetune"
    termination_log: str = TERMINATION_LOG

    def claim(self, slot: Slot, name: str) -> str:
        return f"/mnt/finetune/{slot}"

    def config_map(self, slot: Slot, name: str) -> str:
        return f"/mnt/finetune/{slot}"


@dataclass(frozen=True)
class LocalLayout:
    """Below one folder of this machine; claims are folders that the person names."""

    root: str
    cache: str
    claims: Mapping[str, str]

    @property
    def plan_file(self) -> str:
        return f"{self.root}/plan.json"

    @property
    def output(self) -> str:
        return f"{self.root}/output"

    @property
    def scratch(self) -> str:
        return f"{self.root}/scratch"

    @property
    def termination_log(self) -> str:
        return f"{self.root}/termination.json"

    def claim(self, slot: Slot, name: str) -> str:
        """Raises KeyError when no folder was named for the claim."""
        return self.claims[name]

    def config_map(self, slot: Slot, name: str) -> str:
        return f"{self.root}/config-maps/{name}"


@dataclass(frozen=True)
class SourceRef:
    """A source taken apart. ``name`` is the claim, ConfigMap, package, bucket or repository; ``path`` the rest."""

    scheme: Literal["hf", "pvc", "file", "package", "configMap", "s3"]
    name: str
    path: str


def parse_source(uri: str) -> SourceRef:
    """Takes a source that passed validation apart."""
    scheme, _, rest = uri.partition("://")
    match scheme:
        case "hf":
            return SourceRef("hf", rest, "")
        case "file":
            return SourceRef("file", "", rest)
        case "pvc" | "package" | "configMap" | "s3":
            name, _, path = rest.partition("/")
            return SourceRef(scheme, name, path.strip("/"))
    raise ValueError(f"{uri!r}: unknown scheme")


def list_sources(spec: FineTuneJobSpec) -> Iterator[tuple[Slot, str]]:
    """What the trainer reads, each with its slot."""
    validation, method, objective = spec.dataset.validation, spec.method, spec.objective
    mixtures = {f"mixture-{index}": mixture.source for index, mixture in enumerate(spec.dataset.mixtures or ())}
    named: dict[Slot, str | None] = {
        "model": spec.model.source,
        "dataset": spec.dataset.source,
        "validation": validation.source if validation else None,
        **mixtures,
        "adapter": method.resume_adapter,
        "reference": objective.reference_model,
        "reward": objective.reward_model,
        "resume": spec.checkpoint.resume if "://" in spec.checkpoint.resume else None,
    }
    yield from ((slot, uri) for slot, uri in named.items() if uri is not None)


def resolve_source(uri: str, slot: Slot, layout: Layout) -> ResolvedSource:
    """Where the trainer's process finds a source."""
    source = parse_source(uri)
    match source.scheme:
        case "hf":
            return ResolvedSource(uri=uri, kind="hf", location=source.name)
        case "package" | "s3":
            return ResolvedSource(uri=uri, kind=source.scheme, location=f"{source.name}/{source.path}")
        case "file":
            location = source.path
        case "pvc":
            location = f"{layout.claim(slot, source.name)}/{source.path}".rstrip("/")
        case "configMap":
            location = f"{layout.config_map(slot, source.name)}/{source.path}"
    return ResolvedSource(uri=uri, kind="file", location=location)
