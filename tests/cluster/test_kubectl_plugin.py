"""The kubectl plugin on the real API server; logs are read on the real node (tests/node)."""

import json
from pathlib import Path

import pytest
import yaml

from finetune_api.progress import ArtifactRecord, Termination
from tests.cluster.harness.containers import Life
from tests.cluster.kubectl_plugin import Plugin
from tests.cluster.operator_process import OperatorProcess

ARTIFACT = ArtifactRecord(type="adapter", path="/mnt/finetune/output/adapter", bytes=3 << 20, sha256="0")
END = Termination(
    reason="Succeeded", message="Trained.", step=9, total_steps=9, checkpoint_step=9, artifacts=(ARTIFACT,)
).model_dump_json(by_alias=True)


@pytest.fixture
def plugin(control_plane, namespace, kubeconfig, tmp_path: Path):
    with OperatorProcess(kubeconfig, namespace, tmp_path) as operator:
        operator.read_health("/readyz")
        yield Plugin(control_plane, namespace)


def test_a_job_is_followed_to_its_end(plugin: Plugin, jobs, kubelet) -> None:
    kubelet(mode="scripted", script=lambda pod: Life(3.0, 0, END))
    jobs.create("bot")
    lines = plugin.run("status", "bot", "--watch").splitlines()
    assert lines[0].startswith(("Pending: ", "Preparing: "))
    assert "Succeeded: step 9 of 9" in lines
    card = dict(line.split(maxsplit=1) for line in lines[lines.index("Succeeded: step 9 of 9") + 1 :])
    assert card["Phase"] == "Succeeded"
    assert card["Plan"] == "lora, sft, single on the CPU"
    assert card["Artifact"] == "adapter, pvc://bot-output/adapter (3.0 MiB)"
    assert card["Checkpoint"].startswith("step 9, ")

    assert "Succeeded" in plugin.run("status")
    assert "has ended (Succeeded)" in plugin.run("stop", "bot", status=1)

    events = plugin.run("events", "bot")
    assert events.index("WorkloadCreated") < events.index("Scheduled") < events.index("Trained.")
    assert "finetunejob/bot" in events and "job/bot" in events and "pod/bot-" in events
    described = plugin.run("describe", "bot")
    assert "source: pvc://models/base" in described and "WorkloadCreated" in described


def test_stop_and_resume(plugin: Plugin, jobs, kubelet) -> None:
    kubelet(mode="scripted", script=lambda pod: Life(600.0, exit_code_on_sigterm=75))
    jobs.create("bot")
    jobs.wait_for("bot", phase="Preparing")
    assert "\nSuspended; " in plugin.run("stop", "bot", "--wait")
    card = plugin.run("status", "bot")
    assert "kubectl finetune resume bot" in card
    assert "bot goes on from the start" in plugin.run("resume", "bot")
    jobs.wait_for("bot", phase="Preparing")


def test_a_failed_job_fails_the_watch(plugin: Plugin, jobs, kubelet) -> None:
    words = Termination(reason="InvalidData", message="train.jsonl:3 has no messages").model_dump_json(by_alias=True)
    kubelet(mode="scripted", script=lambda pod: Life(0.3, 10, words))
    jobs.create("bot")
    card = plugin.run("status", "bot", "--watch", status=1)
    assert "train.jsonl:3 has no messages" in card
    assert "kubectl finetune logs bot; mend the spec" in card


def test_render_prints_what_was_applied(plugin: Plugin, jobs) -> None:
    jobs.create("bot")
    jobs.wait_for("bot", phase="Pending", workload__name="bot")
    of_name = plugin.run("render", "bot", "--output", "json")
    assert [each["kind"] for each in json.loads(of_name)["items"]] == ["PersistentVolumeClaim", "ConfigMap", "Job"]
    (config_map,) = jobs.children("configmaps")
    assert json.loads(of_name)["items"][1]["data"] == config_map["data"]
    assert [each["kind"] for each in yaml.safe_load_all(plugin.run("render", "bot"))][-1] == "Job"


def test_what_cannot_be_is_told_plainly(plugin: Plugin, jobs) -> None:
    assert 'finetunejobs.finetune.dev "nobody" not found' in plugin.run("status", "nobody", status=1)
    assert '"nobody" not found' in plugin.run("status", "nobody", "--watch", status=1)
    jobs.create("bot", runPolicy={"suspend": True})
    jobs.wait_for("bot", phase="Suspended")
    assert "bot has no pod: Suspended" in plugin.run("logs", "bot", status=1)


def test_deletion_ends_the_watch(plugin: Plugin, jobs, kubelet) -> None:
    kubelet(mode="scripted", script=lambda pod: Life(600.0))
    jobs.create("bot")
    with plugin.start("status", "bot", "--watch") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        jobs.api.delete(f"/apis/finetune.dev/v1alpha1/namespaces/{jobs.namespace}/finetunejobs/bot")
        _, error = process.communicate(timeout=60)
    assert first.startswith(("Pending: ", "Preparing: "))
    assert process.returncode == 1
    assert "finetunejob bot was deleted" in error
