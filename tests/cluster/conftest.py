from tests.cluster.job_fixtures import jobs, kubeconfig, operator

__all__ = ["jobs", "kubeconfig", "operator"]
