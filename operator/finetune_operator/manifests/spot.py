"""How each provider marks its spot nodes, and what keeps a pod from being moved without need."""

from typing import Literal, NamedTuple

from finetune_api.spec import FineTuneJobSpec
from finetune_operator.manifests.metadata import Manifest
from finetune_operator.run_state import Market, RunState
from finetune_operator.settings import Settings

Provider = Literal["karpenter", "gke", "eks", "aks", "generic"]


class Profile(NamedTuple):
    """One provider's."""

    selectors: dict[Market, dict[str, str]]
    """Labels of the nodes of each market; empty: those without the taint."""
    tolerations: list[dict[str, str]]
    """Of the taint that spot nodes have."""
    annotations: dict[str, str]
    """Ask the autoscaler not to move the pod for the sake of fuller nodes."""
    source: str
    """The provider's documentation."""


_KEEP = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}

PROFILES: dict[Provider, Profile] = {
    "karpenter": Profile(
        {"spot": {"karpenter.sh/capacity-type": "spot"}, "on-demand": {"karpenter.sh/capacity-type": "on-demand"}},
        [],
        {"karpenter.sh/do-not-disrupt": "true"},
        "karpenter.sh/docs/concepts/disruption",
    ),
    "gke": Profile(
        {"spot": {"cloud.google.com/gke-spot": "true"}, "on-demand": {}},
        [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
        _KEEP,
        "cloud.google.com/kubernetes-engine/docs/concepts/spot-vms",
    ),
    "eks": Profile(
        {
            "spot": {"eks.amazonaws.com/capacityType": "SPOT"},
            "on-demand": {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
        },
        [],
        _KEEP,
        "docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html",
    ),
    "aks": Profile(
        {"spot": {"kubernetes.azure.com/scalesetpriority": "spot"}, "on-demand": {}},
        [
            {
                "key": "kubernetes.azure.com/scalesetpriority",
                "operator": "Equal",
                "value": "spot",
                "effect": "NoSchedule",
            }
        ],
        _KEEP,
        "learn.microsoft.com/azure/aks/spot-node-pool",
    ),
    "generic": Profile(
        {"spot": {"finetune.dev/capacity-type": "spot"}, "on-demand": {"finetune.dev/capacity-type": "on-demand"}},
        [{"key": "finetune.dev/capacity-type", "operator": "Equal", "value": "spot", "effect": "NoSchedule"}],
        _KEEP,
        "labels and taints that you set yourself",
    ),
}


def add_spot(pod: Manifest, metadata: Manifest, spec: FineTuneJobSpec, settings: Settings, run: RunState) -> None:
    """Put the pod of a job with spot.enabled on the market where it is to run."""
    if not spec.spot.enabled:
        return
    profile = PROFILES[spec.spot.provider or settings.spot_provider]
    pod["nodeSelector"] = profile.selectors[run.market] | pod.get("nodeSelector", {})
    if not pod["nodeSelector"]:
        del pod["nodeSelector"]
    if run.market == "spot" and profile.tolerations:
        pod["tolerations"] = pod.get("tolerations", []) + profile.tolerations
    metadata["annotations"] = profile.annotations | metadata.get("annotations", {})
