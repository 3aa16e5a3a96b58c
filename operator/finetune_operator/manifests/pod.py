"""The trainer's pod."""

from finetune_api import names
from finetune_api.kubernetes import parse_duration
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.environment import build_environment
from finetune_operator.manifests.gang import add_gang
from finetune_operator.manifests.metadata import Manifest, build_labels, service_name
from finetune_operator.manifests.network import add_network
from finetune_operator.manifests.placement import add_placement
from finetune_operator.manifests.scheduling import build_scheduling
from finetune_operator.manifests.spot import add_spot
from finetune_operator.manifests.volumes import build_volumes
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.layout import Layout
from finetune_operator.run_state import RunState
from finetune_operator.settings import Settings


def build_pod_template(
    job: FineTuneJob, decided: Decided, settings: Settings, layout: Layout, run: RunState
) -> Manifest:
    """Conforms to Pod Security 'restricted' unless the person's own securityContext, volumes or network don't.

    Without restartPolicy: the workload's kind decides it.
    """
    template = job.spec.pod_template
    volumes, mounts = build_volumes(job, decided, layout)
    security = settings.security_context.model_dump(by_alias=True, exclude_none=True)
    if template.security_context is not None:
        security |= template.security_context.model_dump(by_alias=True, exclude_none=True)
    pull_secrets = template.image_pull_secrets or settings.image_pull_secrets
    metadata: Manifest = {"labels": (template.labels or {}) | build_labels(job)}
    if template.annotations:
        metadata["annotations"] = template.annotations
    scheduling = build_scheduling(job)
    add_spot(scheduling, metadata, job.spec, settings, run)
    add_placement(scheduling, job)
    add_gang(scheduling, metadata, job)
    grace_period = job.spec.spot.grace_period if job.spec.spot.enabled else None
    pod: Manifest = {
        "terminationGracePeriodSeconds": parse_duration(grace_period or settings.termination_grace_period),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
        **scheduling,
        "containers": [build_container(job, decided, settings, layout) | {"volumeMounts": mounts}],
        "volumes": volumes,
    }
    if template.service_account_name is not None:
        pod["serviceAccountName"] = template.service_account_name
    if pull_secrets:
        pod["imagePullSecrets"] = [secret.model_dump(by_alias=True) for secret in pull_secrets]
    if job.spec.parallelism.nodes > 1 and job.spec.parallelism.backend == "Job":
        pod["subdomain"] = service_name(job)
    add_network(pod, metadata, job.spec)
    return {"metadata": metadata, "spec": pod}


def build_requests(job: FineTuneJob, decided: Decided) -> Manifest:
    """What a pod asks the scheduler for, without the network's devices."""
    gpu, wanted = job.spec.resources.gpu, decided.resources
    requests: Manifest = {"cpu": wanted.cpu, "memory": wanted.memory}
    if job.spec.resources.ephemeral_storage is not None:
        requests["ephemeral-storage"] = job.spec.resources.ephemeral_storage
    if gpu.count:
        requests[gpu.resource_name] = str(gpu.count)
    return requests


def build_container(job: FineTuneJob, decided: Decided, settings: Settings, layout: Layout) -> Manifest:
    """The trainer: starts one process per GPU itself (torchrun), so that the exit code stays the trainer's.

    No command: the image's entrypoint has an init process in front (names.ENTRYPOINT).
    """
    template, gpu = job.spec.pod_template, job.spec.resources.gpu
    requests = build_requests(job, decided)
    limits: Manifest = {"memory": requests["memory"]}
    if gpu.count:
        limits[gpu.resource_name] = requests[gpu.resource_name]
    container: Manifest = {
        "name": names.CONTAINER,
        "image": template.image or settings.trainer_image,
        "args": ["--plan", layout.plan_file],
        "env": build_environment(job, layout),
        "ports": [{"name": names.METRICS_PORT_NAME, "containerPort": decided.plan.observability.metrics_port, "protocol": "TCP"}],
        "resources": {"requests": requests, "limits": limits},
        "terminationMessagePath": names.TERMINATION_LOG,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }  # fmt: skip
    if template.image_pull_policy is not None:
        container["imagePullPolicy"] = template.image_pull_policy
    if template.env_from:
        container["envFrom"] = [source.model_dump(by_alias=True, exclude_none=True) for source in template.env_from]
    return container
