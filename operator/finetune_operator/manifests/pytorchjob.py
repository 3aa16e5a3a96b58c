"""The PyTorchJob of Kubeflow's training operator (kubeflow.org/v1).

All its pods are workers. With a master Kubeflow puts a container of its own before the workers, of an image from elsewhere,
which Pod Security 'restricted' refuses; and the first worker serves as well.
It has no podFailurePolicy: its containers are started again whatever they end with, and the operator ends it.
"""

from typing import Any

from finetune_api import names
from finetune_api.kubernetes import parse_duration
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest, build_workload_metadata, is_suspended
from finetune_operator.manifests.pod import build_pod_template
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.layout import Layout
from finetune_operator.run_state import RunState
from finetune_operator.settings import Settings


def build_pytorchjob(job: FineTuneJob, decided: Decided, settings: Settings, layout: Layout, run: RunState) -> Manifest:
    """Its controller gives each pod a Service of the pod's name."""
    policy = job.spec.run_policy
    template = build_pod_template(job, decided, settings, layout, run)
    (container,) = template["spec"]["containers"]
    container["name"] = names.PYTORCHJOB_CONTAINER
    port = {"name": names.PYTORCHJOB_PORT_NAME, "containerPort": names.RENDEZVOUS_PORT, "protocol": "TCP"}
    container["ports"].append(port)

    run_policy: dict[str, Any] = {"cleanPodPolicy": "Running", "suspend": is_suspended(job, run)}
    if policy.active_deadline is not None:
        run_policy["activeDeadlineSeconds"] = parse_duration(policy.active_deadline)
    if policy.ttl_after_finished is not None:
        run_policy["ttlSecondsAfterFinished"] = parse_duration(policy.ttl_after_finished)
    spec: Manifest = {
        "nprocPerNode": str(decided.plan.parallelism.processes_per_node),
        "pytorchReplicaSpecs": {
            "Worker": {"replicas": job.spec.parallelism.nodes, "restartPolicy": "OnFailure", "template": template}
        },
        "runPolicy": run_policy,
    }
    elastic = job.spec.parallelism.elastic
    if elastic is not None:
        spec["elasticPolicy"] = {
            "rdzvBackend": "c10d",
            "minReplicas": elastic.min_nodes,
            "maxReplicas": job.spec.parallelism.nodes,
            "maxRestarts": elastic.max_restarts,
        }
    metadata = build_workload_metadata(job, decided, run)
    return {"apiVersion": names.PYTORCHJOB_API_VERSION, "kind": "PyTorchJob", "metadata": metadata, "spec": spec}
