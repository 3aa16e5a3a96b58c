"""Volumes of the trainer's pod and where they are mounted: each slot of the job that needs one has its place."""

from finetune_api import names
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest, cache_claim_name, output_claim_name, plan_name
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.layout import Layout, Slot, list_sources, parse_source


def build_volumes(job: FineTuneJob, decided: Decided, layout: Layout) -> tuple[list[Manifest], list[Manifest]]:
    """(volumes, mounts) of the pod."""
    spec = job.spec
    pairs: list[tuple[Manifest, Manifest] | None] = [
        (
            {"name": "plan", "configMap": {"name": plan_name(job)}},
            {"name": "plan", "mountPath": names.PLAN_DIRECTORY, "readOnly": True},
        ),
        _output(job, layout),
        _checkpoints(job, layout),
        *(_source(slot, uri, layout) for slot, uri in list_sources(spec)),
        _cache(job, layout),
        (
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": decided.resources.shared_memory}},
            {"name": "shm", "mountPath": "/dev/shm"},
        ),
        ({"name": "tmp", "emptyDir": {}}, {"name": "tmp", "mountPath": "/tmp"}),
    ]
    present = [pair for pair in pairs if pair is not None]
    volumes = [volume for volume, _ in present]
    mounts = [mount for _, mount in present]
    for volume in spec.pod_template.volumes or ():
        volumes.append(volume.model_dump(by_alias=True, exclude_none=True))
    for mount in spec.pod_template.volume_mounts or ():
        mounts.append(mount.model_dump(by_alias=True, exclude_none=True))
    return _share_claims(volumes, mounts)


def _share_claims(volumes: list[Manifest], mounts: list[Manifest]) -> tuple[list[Manifest], list[Manifest]]:
    """One volume for each claim, mounted wherever the claim is wanted: many kubelets never start a pod that has a claim in two
    volumes (https://github.com/kubernetes/kubernetes/issues/132921)."""
    of_claim: dict[str, Manifest] = {}
    kept, shared = [], {}
    for volume in volumes:
        claim = volume.get("persistentVolumeClaim", {})
        first = of_claim.setdefault(claim["claimName"], volume) if claim else volume
        if first is volume:
            kept.append(volume)
            continue
        shared[volume["name"]] = first["name"]
        if not claim.get("readOnly"):
            first["persistentVolumeClaim"].pop("readOnly", None)
    return kept, [mount | {"name": shared.get(mount["name"], mount["name"])} for mount in mounts]


def _source(slot: Slot, uri: str, layout: Layout) -> tuple[Manifest, Manifest] | None:
    source = parse_source(uri)
    if source.scheme == "pvc":
        volume: Manifest = {"persistentVolumeClaim": {"claimName": source.name, "readOnly": True}}
        path = layout.claim(slot, source.name)
    elif source.scheme == "configMap":
        volume = {"configMap": {"name": source.name, "items": [{"key": source.path, "path": source.path}]}}
        path = layout.config_map(slot, source.name)
    else:
        return None
    return {"name": slot} | volume, {"name": slot, "mountPath": path, "readOnly": True}


def _output(job: FineTuneJob, layout: Layout) -> tuple[Manifest, Manifest] | None:
    destination = job.spec.output.destination
    if destination is None:
        return _written("output", output_claim_name(job), layout.output)
    if parse_source(destination).scheme == "s3":
        return {"name": "output", "emptyDir": {}}, {"name": "output", "mountPath": layout.output}
    return _named("output", destination, layout)


def _checkpoints(job: FineTuneJob, layout: Layout) -> tuple[Manifest, Manifest] | None:
    storage = job.spec.checkpoint.storage
    return None if storage is None else _named("checkpoints", storage, layout)


def _named(slot: Slot, uri: str, layout: Layout) -> tuple[Manifest, Manifest] | None:
    """Of what the trainer writes, where that is a claim that the job names."""
    source = parse_source(uri)
    return _written(slot, source.name, layout.claim(slot, source.name)) if source.scheme == "pvc" else None


def _written(slot: Slot, claim: str, path: str) -> tuple[Manifest, Manifest]:
    return (
        {"name": slot, "persistentVolumeClaim": {"claimName": claim}},
        {"name": slot, "mountPath": path},
    )


def _cache(job: FineTuneJob, layout: Layout) -> tuple[Manifest, Manifest]:
    cache = job.spec.model.cache
    volume: Manifest = {"emptyDir": {}}
    if cache is not None:
        volume = {"persistentVolumeClaim": {"claimName": cache.claim_name or cache_claim_name(job)}}
    return {"name": "cache"} | volume, {"name": "cache", "mountPath": layout.cache}
