"""The whole path as a person goes it: the command on this machine, and kubectl on the real API server."""

from tests.cluster.job_fixtures import jobs, kubeconfig
from tests.trainer.conftest import environment, tiny_model, tokenizer, tokenizer_folder

__all__ = ["environment", "jobs", "kubeconfig", "tiny_model", "tokenizer", "tokenizer_folder"]
