"""How the pods of one job lie to each other."""

from typing import Any

from finetune_api import names
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest


def add_placement(pod: Manifest, job: FineTuneJob) -> None:
    """Pack: affinity to the job's own pods. Spread: a constraint on how uneven they may lie."""
    placement = job.spec.resources.placement
    if placement is None:
        return
    selector = {"matchLabels": {names.LABEL_JOB_NAME: job.metadata.name}}
    if placement.policy == "Spread":
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": placement.topology_key,
                "whenUnsatisfiable": "DoNotSchedule" if placement.required else "ScheduleAnyway",
                "labelSelector": selector,
            }
        ]
        return
    term: dict[str, Any] = {"labelSelector": selector, "topologyKey": placement.topology_key}
    affinity = pod.setdefault("affinity", {}).setdefault("podAffinity", {})
    if placement.required:
        affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(term)
    else:
        wish = {"weight": 100, "podAffinityTerm": term}
        affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", []).append(wish)
