"""Which nodes the trainer's pod may run on."""

from finetune_api.names import GPU_PRODUCT_LABEL
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest


def build_scheduling(job: FineTuneJob) -> Manifest:
    """The scheduling part of the pod's spec; keys that say nothing are absent."""
    asked = job.spec.resources
    selector = dict(asked.node_selector or {})
    if asked.gpu.product is not None:
        selector[GPU_PRODUCT_LABEL] = asked.gpu.product
    tolerations = [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in asked.tolerations or ()]
    if asked.gpu.count:
        own = {"key": asked.gpu.resource_name, "operator": "Exists", "effect": "NoSchedule"}
        tolerations = [own] + [toleration for toleration in tolerations if toleration != own]
    part: Manifest = {
        "nodeSelector": selector,
        "tolerations": tolerations,
        "affinity": asked.affinity.model_dump(by_alias=True, exclude_none=True) if asked.affinity else None,
        "priorityClassName": asked.priority_class_name,
        "runtimeClassName": asked.runtime_class_name,
        "schedulerName": asked.scheduler_name,
    }
    return {key: value for key, value in part.items() if value}
