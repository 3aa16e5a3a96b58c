"""The PodGroup: a scheduler that knows gangs places all pods of a job at once, or none."""

from typing import Literal, NamedTuple

from finetune_api.kubernetes import parse_duration
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest, build_metadata, job_name
from finetune_operator.plan.decide import multiply_quantity

GangScheduler = Literal["volcano", "scheduler-plugins"]


class Profile(NamedTuple):
    """How one scheduler knows the pods of a gang."""

    api_version: str
    scheduler_name: str
    """By its own installation's default."""
    mark: str
    """Key with the PodGroup's name: of an annotation, or of a label."""
    place: Literal["annotations", "labels"]
    source: str


PROFILES: dict[GangScheduler, Profile] = {
    "volcano": Profile(
        "scheduling.volcano.sh/v1beta1",
        "volcano",
        "scheduling.k8s.io/group-name",
        "annotations",
        "volcano.sh/docs/podgroup",
    ),
    "scheduler-plugins": Profile(
        "scheduling.x-k8s.io/v1alpha1",
        "scheduler-plugins-scheduler",
        "scheduling.x-k8s.io/pod-group",
        "labels",
        "sigs.k8s.io/scheduler-plugins, coscheduling",
    ),
}


def build_pod_group(job: FineTuneJob, requests: Manifest) -> Manifest | None:
    """``requests``: of one pod."""
    gang = job.spec.resources.gang
    if gang is None:
        return None
    elastic = job.spec.parallelism.elastic
    members = job.spec.parallelism.nodes if elastic is None else elastic.min_nodes
    spec: Manifest = {
        "minMember": members,
        "minResources": {name: multiply_quantity(str(each), members) for name, each in requests.items()},
    }
    if gang.scheduler == "volcano":
        spec["queue"] = gang.queue or "default"
        if job.spec.resources.priority_class_name is not None:
            spec["priorityClassName"] = job.spec.resources.priority_class_name
    elif gang.timeout is not None:
        spec["scheduleTimeoutSeconds"] = parse_duration(gang.timeout)
    metadata = build_metadata(job, job_name(job))
    return {"apiVersion": PROFILES[gang.scheduler].api_version, "kind": "PodGroup", "metadata": metadata, "spec": spec}


def add_gang(pod: Manifest, metadata: Manifest, job: FineTuneJob) -> None:
    """Make the pod a member."""
    gang = job.spec.resources.gang
    if gang is None:
        return
    profile = PROFILES[gang.scheduler]
    pod.setdefault("schedulerName", profile.scheduler_name)
    metadata[profile.place] = metadata.get(profile.place, {}) | {profile.mark: job_name(job)}
