"""A rendered Job -> the same command and environment for a process of this machine."""

import hashlib
import math
import platform
import re
import sys
import uuid
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.kubernetes import parse_quantity
from finetune_api.plan import TrainingPlan
from finetune_api.spec import FineTuneJob
from finetune_operator.cli.errors import CommandError
from finetune_operator.manifests.pod import build_container
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import LocalLayout, Slot, list_sources, parse_source
from finetune_operator.settings import Settings

# What the rendered environment says of the container and not of the run: a terminal gets its progress bar, and the
# person's own home stays theirs.
_OF_THE_CONTAINER = ("HOME", names.ENV_LOG_FORMAT)

Manifest = dict[str, Any]


@dataclass(frozen=True)
class LocalRun:
    """Everything that the process needs."""

    plan: TrainingPlan
    command: list[str]
    environment: dict[str, str]
    files: dict[Path, bytes]
    """Written before the start: the plan, and the ConfigMaps that the job names."""
    remarks: list[str]
    """What differs from the cluster."""


def build_local_run(
    job: FineTuneJob, settings: Settings, layout: LocalLayout, config_maps: Mapping[str, Manifest], caller: Mapping[str, str], taken_ports: Container[int]
) -> LocalRun:  # fmt: skip
    """``caller`` is the environment of the person, ``taken_ports`` what other processes of the machine listen on.

    Raises CommandError with all that is missing.
    """
    problems = [
        *_find_other_nodes(job),
        *_find_missing_claims(job, layout),
        *_find_missing_config_maps(job, config_maps),
    ]
    if problems:
        raise CommandError("\n".join(problems))
    files = dict(_list_config_map_files(job, layout, config_maps))
    decided = decide_plan(job, settings, layout)
    if problems := list(_find_missing_data(decided.plan, files)):
        raise CommandError("\n".join(problems))
    # A run is what it is made of: the same job on the same data goes on, a changed one starts anew.
    identity = uuid.uuid5(uuid.NAMESPACE_URL, decided.plan.to_json() + _hash_data(decided.plan, files))
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": str(identity)})})
    decided = decide_plan(job, settings, layout)
    container = build_container(job, decided, settings, layout)
    plan, remarks = decided.plan, list(_list_remarks(job))
    if plan.observability.metrics_port in taken_ports:
        remarks.append(f"port {plan.observability.metrics_port} is taken here: metrics are on a free one")
        plan = plan.model_copy(update={"observability": plan.observability.model_copy(update={"metrics_port": 0})})
    if plan.preflight is not None:
        remarks.append("preflight is left out: nobody promised anything of this machine")
        plan = plan.model_copy(update={"preflight": None})
    files[Path(layout.plan_file)] = plan.to_json().encode()
    environment = _build_environment(container, job, config_maps, caller)
    return LocalRun(
        plan=plan,
        command=[sys.executable, *names.ENTRYPOINT[1:], *container["args"]],
        environment={**caller, **environment},
        files=files,
        remarks=remarks,
    )


def _sources(job: FineTuneJob) -> Iterator[tuple[Slot, str]]:
    yield from list_sources(job.spec)
    if job.spec.output.destination is not None:
        yield "output", job.spec.output.destination
    if job.spec.checkpoint.storage is not None:
        yield "checkpoints", job.spec.checkpoint.storage


def _find_other_nodes(job: FineTuneJob) -> Iterator[str]:
    if job.spec.parallelism.nodes > 1:
        yield (
            f"parallelism.nodes {job.spec.parallelism.nodes}: a run on this machine has one node; set it to 1, with "
            "resources.gpu.count for the GPUs that are here"
        )


def _find_missing_claims(job: FineTuneJob, layout: LocalLayout) -> Iterator[str]:
    for uri in dict.fromkeys(uri for _, uri in _sources(job)):
        source = parse_source(uri)
        if source.scheme == "pvc" and source.name not in layout.claims:
            yield f"{uri} needs a folder that stands for the claim: add --claim {source.name}=DIR"


def _find_missing_config_maps(job: FineTuneJob, config_maps: Mapping[str, Manifest]) -> Iterator[str]:
    for _, uri in _sources(job):
        source = parse_source(uri)
        if source.scheme != "configMap":
            continue
        if source.name not in config_maps:
            yield f"{uri}: there is no ConfigMap {source.name} in the file; put it there as one more document"
        elif not isinstance(config_maps[source.name].get("data", {}).get(source.path), str):
            yield f"{uri}: ConfigMap {source.name} has no text under the key {source.path}"


def _list_config_map_files(
    job: FineTuneJob, layout: LocalLayout, config_maps: Mapping[str, Manifest]
) -> Iterator[tuple[Path, bytes]]:
    for slot, uri in _sources(job):
        source = parse_source(uri)
        if source.scheme == "configMap":
            path = Path(layout.config_map(slot, source.name)) / source.path
            yield path, config_maps[source.name]["data"][source.path].encode()


def _data_paths(plan: TrainingPlan) -> Iterator[tuple[str, Path]]:
    mixed = (mixture.source for mixture in plan.dataset.mixtures)
    for each in (plan.dataset.source, plan.dataset.validation_source, *mixed):
        if each is not None and each.kind == "file":
            yield each.uri, Path(each.location)


def _find_missing_data(plan: TrainingPlan, files: Mapping[Path, bytes]) -> Iterator[str]:
    for uri, path in _data_paths(plan):
        if path not in files and not path.exists():
            yield f"{uri}: {path} does not exist"


def _hash_data(plan: TrainingPlan, files: Mapping[Path, bytes]) -> str:
    """Of the content of the data that lies on this machine."""
    digest = hashlib.sha256()
    for _, path in _data_paths(plan):
        if path in files:
            digest.update(files[path])
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as stream:
                    digest.update(f"{file}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _build_environment(
    container: Manifest, job: FineTuneJob, config_maps: Mapping[str, Manifest], caller: Mapping[str, str]
) -> dict[str, str]:
    """The rendered variables, references followed as far as this machine can."""
    found: dict[str, str] = {}
    problems = []
    for reference in container.get("envFrom", ()):
        if config_map := reference.get("configMapRef"):
            data = config_maps.get(config_map["name"], {}).get("data", {})
            found |= {f"{reference.get('prefix', '')}{key}": value for key, value in data.items()}
    for variable in container["env"]:
        name = variable["name"]
        if name in _OF_THE_CONTAINER and name not in {each.name for each in job.spec.pod_template.env or ()}:
            continue
        source = variable.get("valueFrom")
        if source is None:
            found[name] = _expand(variable.get("value", ""), found)
            continue
        ((kind, reference),) = source.items()
        value = _follow(kind, reference, name, container, job, config_maps, caller)
        if value is not None:
            found[name] = value
        elif not reference.get("optional"):
            where = (
                f"key {reference['key']} of {'Secret' if kind == 'secretKeyRef' else 'ConfigMap'} {reference['name']}"
                if "key" in reference
                else reference
            )
            problems.append(f"{name} comes from {where} on a cluster: set the environment variable {name} here")
    if problems:
        raise CommandError("\n".join(problems))
    return found


def _follow(
    kind: str, reference: Manifest, name: str, container: Manifest, job: FineTuneJob, config_maps: Mapping[str, Manifest], caller: Mapping[str, str]
) -> str | None:  # fmt: skip
    """The value that a reference stands for; None when this machine has none."""
    match kind:
        case "secretKeyRef":
            return caller.get(name)
        case "configMapKeyRef":
            value = config_maps.get(reference["name"], {}).get("data", {}).get(reference["key"])
            return value if value is not None else caller.get(name)
        case "fieldRef":
            known = {
                "metadata.name": job.metadata.name,
                "metadata.namespace": job.metadata.namespace,
                "metadata.uid": job.metadata.uid,
                "spec.nodeName": platform.node(),
                "status.podIP": "127.0.0.1",
                "status.hostIP": "127.0.0.1",
            }
            return known.get(reference["fieldPath"], caller.get(name))
        case _:
            part, _, resource = reference["resource"].partition(".")
            quantity = container["resources"][part].get(resource)
            return (
                caller.get(name)
                if quantity is None
                else str(math.ceil(parse_quantity(quantity) / parse_quantity(reference.get("divisor", "1"))))
            )


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` as the kubelet expands it; ``$$`` stands for one ``$``."""
    return re.sub(
        r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)",
        lambda match: "$" if match[1] is None else variables.get(match[1], match[0]),
        text,
    )


def _list_remarks(job: FineTuneJob) -> Iterator[str]:
    template = job.spec.pod_template
    if template.volume_mounts:
        yield "podTemplate.volumeMounts are left out: paths are this machine's own"
    if any(source.secret_ref for source in template.env_from or ()):
        yield "Secrets of podTemplate.envFrom are left out: the environment is this shell's"
    if job.spec.spot.enabled:
        yield "spot is left out: this machine stays"
    if job.spec.run_policy.suspend:
        yield "runPolicy.suspend is left out: the run starts at once"


def build_layout(job: FineTuneJob, output_dir: Path | None, cache: Path, claims: Mapping[str, Path]) -> LocalLayout:
    """Absolute paths: the process may work elsewhere."""
    root = output_dir or Path("finetune-runs") / job.metadata.name
    return replace(
        LocalLayout(root=str(root.absolute()), cache=str(cache.absolute()), claims={}),
        claims={name: str(folder.absolute()) for name, folder in claims.items()},
    )
