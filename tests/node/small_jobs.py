"""FineTuneJobs of a tiny random model on the node, whose steps take milliseconds, and what each of their steps saw."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiException

from finetune_api import names
from tests.chart.release import Release
from tests.checkpoints import list_complete
from tests.cluster.harness.api import Object
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.node import NAME
from tests.node.training import Training
from tests.tiny_model import build_tiny_model
from tests.trainer.plans import build_conversations

MODEL_CLAIM, DATA, PROBE = "tiny-model", "small-data", "rows-probe"
ROWS = 96
_PROBE_FILE = Path(__file__).parent / "probe" / "sitecustomize.py"
_USER = 1000
"""Of the trainer's pods."""


def build_preferences(count: int) -> str:
    """Prompts with a right and a wrong answer, JSON lines."""
    rows = []
    for number in range(count):
        prompt = [{"role": "user", "content": f"What is {number} plus {number}?" + " Please." * (number % 3)}]
        chosen, rejected = f"It is {2 * number}.", "I don't know" + ", really" * (number % 4) + "."
        rows.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    return "".join(json.dumps(row) + "\n" for row in rows)


def prepare_place(release: Release, control_plane: ControlPlane, namespace: str, folder: Path) -> None:
    """Model and data in a namespace that the installed operator watches; ``folder`` is for the model."""
    build_tiny_model(folder)
    provide_inputs(control_plane, namespace, folder)
    release.install("--set", "settings.progressInterval=2s", "--wait", "--timeout", "3m")


def provide_inputs(control_plane: ControlPlane, namespace: str, model: Path) -> None:
    """The model in a claim, rows and probe in ConfigMaps."""
    api, path = control_plane.api, f"/api/v1/namespaces/{namespace}"
    # As if a pod on the node had asked for it.
    annotations = {"volume.kubernetes.io/selected-node": NAME}
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"metadata": {"name": MODEL_CLAIM, "annotations": annotations}, "spec": spec}
    api.post(f"{path}/persistentvolumeclaims", claim)

    def is_bound() -> bool:
        return bool(api.get(f"{path}/persistentvolumeclaims/{MODEL_CLAIM}")["status"]["phase"] == "Bound")

    wait_until(is_bound, f"claim {MODEL_CLAIM} bound")
    folder = control_plane.claim_folder(namespace, MODEL_CLAIM)
    shutil.copytree(model, folder, dirs_exist_ok=True)
    for each in (folder, *folder.rglob("*")):
        os.chown(each, _USER, _USER)
    data = {"sft.jsonl": build_conversations(ROWS), "dpo.jsonl": build_preferences(ROWS)}
    api.post(f"{path}/configmaps", {"metadata": {"name": DATA}, "data": data})
    probe = {_PROBE_FILE.name: _PROBE_FILE.read_text()}
    api.post(f"{path}/configmaps", {"metadata": {"name": PROBE}, "data": probe})


class SmallJob(Training):
    """One of them: LoRA with dropout, float32, so that the same rows in the same order give the same bits.

    Keyword arguments are sections of the spec, laid over those here.
    """

    def __init__(self, control_plane: ControlPlane, namespace: str, name: str, **sections: Object) -> None:
        super().__init__(control_plane, namespace, name)
        objective = sections.get("objective", {}).get("type", "sft")
        spec: Object = {
            "model": {"source": f"pvc://{MODEL_CLAIM}"},
            "dataset": {"source": f"configMap://{DATA}/{objective}.jsonl"},
            "method": {"type": "lora", "rank": 4, "dropout": 0.1},
            "objective": {"type": objective},
            "training": {
                "maxSteps": 200,
                "perDeviceBatchSize": 2,
                "gradientAccumulation": 1,
                "maxLength": 128,
                "learningRate": 1e-3,
                "loggingSteps": 1,
            },
            "checkpoint": {"everySteps": 1_000_000},
            "resources": {"gpu": {"count": 0}, "cpu": "100m", "memory": "3Gi", "sharedMemory": "256Mi"},
            "output": {"verify": False},
            "podTemplate": {
                "env": [
                    {"name": "PYTHONPATH", "value": "/probe"},
                    {"name": "ROWS_FILE", "value": "/mnt/finetune/output/rows"},
                ],
                "volumes": [{"name": "probe", "configMap": {"name": PROBE}}],
                "volumeMounts": [{"name": "probe", "mountPath": "/probe", "readOnly": True}],
            },
        }
        for section, values in sections.items():
            spec[section] = spec.get(section, {}) | values
        self.manifest: Object = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }

    def apply(self) -> None:
        self.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(self.manifest))

    def delete(self) -> None:
        self.kubectl("delete", "finetunejob", self.name, "--wait")

    def status(self) -> Object:
        return self.get().get("status", {})

    def rows(self, rank: int = 0) -> list[Object]:
        """What the micro-batches of a rank were given so far: their step, and a hash of their tokens."""
        try:
            lines = (self.output() / f"rows-{rank}").read_text().splitlines()
        except (LookupError, OSError, ApiException):  # no claim, or no first step yet
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def saved_step(self) -> int:
        """Of the newest complete checkpoint; 0: there is none."""
        try:
            return max(list_complete(self.output() / "checkpoints"), default=0)
        except (LookupError, OSError, ApiException):  # no claim yet
            return 0

    def weights(self) -> bytes:
        """The adapter, bit for bit."""
        return (self.output() / "adapter" / "adapter_model.safetensors").read_bytes()

    def running_pods(self) -> list[str]:
        """Names of the pods that aren't told to end and whose trainer runs."""
        return [
            pod["metadata"]["name"]
            for pod in self.pods()
            if "deletionTimestamp" not in pod["metadata"]
            and any("running" in status["state"] for status in pod["status"].get("containerStatuses", ()))
        ]

    def evict(self, pod: str) -> None:
        """By the Eviction API, as a drain of the node does: SIGTERM, and the grace period to end."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        metadata = {"name": pod, "namespace": self.namespace}
        self._control_plane.api.post(path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})

    def describe(self) -> Any:
        """For messages of tests that wait in vain."""
        return {key: value for key, value in self.status().items() if key != "conditions"}
