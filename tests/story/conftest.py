"""The whole path as a person goes it: the command on this machine, and kubectl on the real API server."""

from tests.cluster.harness.fixtures import _sandbox, control_plane, kubelet, namespace
from tests.fault.conftest import jobs, kubeconfig
from tests.trainer.conftest import environment, tiny_model, tokenizer, tokenizer_folder

__all__ = [
    "_sandbox",
    "control_plane",
    "environment",
    "jobs",
    "kubeconfig",
    "kubelet",
    "namespace",
    "tiny_model",
    "tokenizer",
    "tokenizer_folder",
]
