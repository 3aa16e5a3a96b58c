"""podFailurePolicy: what each end of the trainer means for the Job, from the exit-code table."""

from finetune_api.exit_codes import TABLE, ExitCode, Retry
from finetune_operator.manifests.metadata import Manifest


def build_pod_failure_policy() -> Manifest:
    """Rules in order: a disruption or a preemption is free, a hopeless exit fails the Job, all else counts."""
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            _on_exit("Ignore", Retry.FREE),
            _on_exit("FailJob", Retry.NEVER),
        ]
    }


def _on_exit(action: str, retry: Retry) -> Manifest:
    codes = sorted(int(code) for code, meaning in TABLE.items() if meaning.retry is retry and code != ExitCode.OK)
    return {"action": action, "onExitCodes": {"operator": "In", "values": codes}}
