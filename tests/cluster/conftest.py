from tests.cluster.job_fixtures import jobs, kubeconfig

__all__ = ["jobs", "kubeconfig"]
