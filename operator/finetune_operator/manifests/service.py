"""The headless Service that gives the pods of an indexed Job their names."""

from finetune_api import names
from finetune_api.spec import FineTuneJob
from finetune_operator.manifests.metadata import Manifest, build_metadata, service_name


def build_service(job: FineTuneJob) -> Manifest | None:
    """Of jobs with several nodes; Kubeflow's controller makes its own."""
    if job.spec.parallelism.nodes == 1 or job.spec.parallelism.backend != "Job":
        return None
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(job, service_name(job)),
        "spec": {
            "clusterIP": "None",
            # The nodes meet before they are ready.
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB_NAME: job.metadata.name},
            "ports": [{"name": "rendezvous", "port": names.RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }
