"""The PersistentVolumeClaims that a job makes: for its output, and for its model cache."""

from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest, build_metadata, cache_claim_name, output_claim_name
from finetune_operator.plan.decide import Decided
from finetune_operator.settings import Settings


def build_output_claim(job: FineTuneJob, decided: Decided, settings: Settings) -> Manifest | None:
    """The output's claim, when the job names no destination. It outlives the job unless told otherwise."""
    if job.spec.output.destination is not None:
        return None
    volume = job.spec.output.volume
    storage_class = (volume.storage_class if volume else None) or settings.output.storage_class
    owned = volume is not None and volume.when_deleted == "Delete"
    return _build_claim(job, output_claim_name(job), decided.resources.output_size, storage_class, owned=owned)


def build_cache_claim(job: FineTuneJob) -> Manifest | None:
    """The cache's claim, when the job asks for one of its own."""
    cache = job.spec.model.cache
    if cache is None or cache.size is None:
        return None
    return _build_claim(job, cache_claim_name(job), cache.size, cache.storage_class, owned=True)


def _build_claim(job: FineTuneJob, name: str, size: str, storage_class: str | None, *, owned: bool) -> Manifest:
    # Pods of several nodes write to it.
    mode = "ReadWriteMany" if job.spec.parallelism.nodes > 1 else "ReadWriteOnce"
    spec: Manifest = {"accessModes": [mode], "resources": {"requests": {"storage": size}}}
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": build_metadata(job, name, owned=owned),
        "spec": spec,
    }
