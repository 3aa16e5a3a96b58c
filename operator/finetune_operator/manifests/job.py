"""The batch/v1 Job: one pod that trains, or one for each node, numbered."""

from finetune_api.kubernetes import parse_duration
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.failure_policy import build_pod_failure_policy
from finetune_operator.manifests.metadata import Manifest, build_workload_metadata, is_suspended
from finetune_operator.manifests.pod import build_pod_template
from finetune_operator.plan.decide import Decided
from finetune_operator.plan.layout import Layout
from finetune_operator.run_state import RunState
from finetune_operator.settings import Settings


def build_job(job: FineTuneJob, decided: Decided, settings: Settings, layout: Layout, run: RunState) -> Manifest:
    """The pods of several nodes are replaced one by one: each ends by itself when another goes away, and they meet again."""
    policy, nodes = job.spec.run_policy, job.spec.parallelism.nodes
    template = build_pod_template(job, decided, settings, layout, run)
    template["spec"] = {"restartPolicy": "Never"} | template["spec"]
    spec: Manifest = {
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": max(0, policy.backoff_limit - run.restarts),
        "podFailurePolicy": build_pod_failure_policy(),
        "podReplacementPolicy": "Failed",  # never two pods on one output
        "suspend": is_suspended(job, run),
        "template": template,
    }
    if nodes > 1:
        spec["completionMode"] = "Indexed"
    if job.spec.parallelism.elastic is not None:
        # The first node has rank 0 and the result; others may be missing.
        spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    if policy.active_deadline is not None:
        spec["activeDeadlineSeconds"] = parse_duration(policy.active_deadline)
    if policy.ttl_after_finished is not None:
        spec["ttlSecondsAfterFinished"] = parse_duration(policy.ttl_after_finished)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": build_workload_metadata(job, decided, run),
        "spec": spec,
    }
