"""Environment of the trainer. Secrets stand here as references only."""

from finetune_api import names
from finetune_api.kubernetes import SecretKeyRef
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest
from finetune_operator.plan.layout import Layout


def build_environment(job: FineTuneJob, layout: Layout) -> list[Manifest]:
    """Variables in order: the operator's own, secrets by reference, the person's (which win)."""
    spec = job.spec
    variables: list[Manifest] = [
        {"name": names.ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": names.ENV_LOG_FORMAT, "value": "json"},
        {"name": names.ENV_TERMINATION_LOG, "value": layout.termination_log},
        {"name": names.ENV_HF_HOME, "value": f"{layout.cache}/huggingface"},
        {"name": "HOME", "value": "/tmp"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    if spec.model.token_secret_ref is not None:
        variables.append(_secret(names.ENV_HF_TOKEN, spec.model.token_secret_ref))
    if spec.observability.wandb_secret_ref is not None:
        variables.append(_secret(names.ENV_WANDB_API_KEY, spec.observability.wandb_secret_ref))
    given = [variable.model_dump(by_alias=True, exclude_none=True) for variable in spec.pod_template.env or ()]
    overridden = {variable["name"] for variable in given}
    return [variable for variable in variables if variable["name"] not in overridden] + given


def _secret(name: str, ref: SecretKeyRef) -> Manifest:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
