"""Environment of the trainer. Secrets stand here as references only."""

from finetune_api import names
from finetune_api.kubernetes import SecretKeyRef
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest, job_name, service_name
from finetune_operator.manifests.network import build_network_environment
from finetune_operator.plan.layout import Layout

# Each step on a CPU frees and takes the same large tensors again: glibc would give them back to the kernel and fault them
# in anew. And threads that spin at a barrier take the time of the one they wait for when the node's cores are shared.
CPU_TUNING = {
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_MAX_": "0",
}


def build_environment(job: FineTuneJob, layout: Layout) -> list[Manifest]:
    """Variables in order: the operator's own, secrets by reference, the person's (which win)."""
    spec = job.spec
    variables: list[Manifest] = [
        {"name": names.ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": names.ENV_NODE_NAME, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": names.ENV_LOG_FORMAT, "value": "json"},
        {"name": names.ENV_TERMINATION_LOG, "value": layout.termination_log},
        {"name": names.ENV_HF_HOME, "value": f"{layout.cache}/huggingface"},
        {"name": "HOME", "value": "/tmp"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    if not spec.resources.gpu.count:
        variables += [{"name": name, "value": value} for name, value in CPU_TUNING.items()]
    variables += _build_meeting_point(job) + build_network_environment(spec)
    hub = spec.output.push_to_hub
    token = hub.token_secret_ref if hub is not None else spec.model.token_secret_ref
    if token is not None:
        variables.append(_secret(names.ENV_HF_TOKEN, token))
    if spec.observability.wandb_secret_ref is not None:
        variables.append(_secret(names.ENV_WANDB_API_KEY, spec.observability.wandb_secret_ref))
    given = [variable.model_dump(by_alias=True, exclude_none=True) for variable in spec.pod_template.env or ()]
    overridden = {variable["name"] for variable in given}
    return [variable for variable in variables if variable["name"] not in overridden] + given


def _build_meeting_point(job: FineTuneJob) -> list[Manifest]:
    """Where several nodes meet, at the first pod; and which node this is, where its controller doesn't say."""
    if job.spec.parallelism.nodes == 1:
        return []
    of_kubeflow = job.spec.parallelism.backend == "PyTorchJob"
    first = f"{job_name(job)}-worker-0" if of_kubeflow else f"{job_name(job)}-0.{service_name(job)}"
    variables: list[Manifest] = [
        {"name": names.ENV_MASTER_ADDR, "value": f"{first}.{job.metadata.namespace}.svc"},
        {"name": names.ENV_MASTER_PORT, "value": str(names.RENDEZVOUS_PORT)},
    ]
    if of_kubeflow:
        path = f"metadata.labels['{names.LABEL_REPLICA_INDEX}']"
        variables.append({"name": names.ENV_NODE_RANK, "valueFrom": {"fieldRef": {"fieldPath": path}}})
    return variables


def _secret(name: str, ref: SecretKeyRef) -> Manifest:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
