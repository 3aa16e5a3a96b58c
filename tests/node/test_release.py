"""The release's life on the real node: training goes on through an upgrade and even without an operator."""

from pathlib import Path

import pytest

from finetune_api.names import Condition
from tests.chart.release import Release, write_previous_chart
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.node.training import Training

QUICK = ("--set", "settings.progressInterval=2s", "--wait", "--timeout", "3m")


def operator_pods(release: Release) -> set[str]:
    found = release.cluster.api.items(
        f"/api/v1/namespaces/{release.namespace}/pods", labelSelector="app.kubernetes.io/component=operator"
    )
    return {pod["metadata"]["uid"] for pod in found}


@pytest.fixture
def training(control_plane: ControlPlane, restricted_namespace: str) -> Training:
    return Training(control_plane, restricted_namespace, "goes-on")


def test_training_goes_on_through_upgrade_uninstall_and_install(
    release: Release, training: Training, tmp_path: Path
) -> None:
    release.install(*QUICK, chart=write_previous_chart(tmp_path))
    training.apply_quickstart(epochs=0.8, perDeviceBatchSize=4, globalBatchSize=4)
    training.wait_for_step(2)
    uid, pod, before = training.get()["metadata"]["uid"], training.pod()["metadata"]["uid"], operator_pods(release)

    release.upgrade(*QUICK, "--set", "settings.workers=4")
    wait_until(lambda: not before & operator_pods(release), "the end of the old operator's pods", 60)
    step = training.get()["status"]["progress"]["step"]
    training.wait_for_step(step + 1)  # the new one tells on

    tested = release.run("test", "--logs", "--timeout", "2m")
    print(tested)
    assert "Phase:          Succeeded" in tested or "Phase: Succeeded" in tested
    assert "the API server serves FineTuneJobList" in tested

    release.run("uninstall", "--wait")
    wait_until(lambda: not operator_pods(release), "the end of the operator's pods", 60)
    assert training.get()["metadata"]["uid"] == uid
    assert training.pod()["status"]["phase"] == "Running"

    release.install(*QUICK)
    training.wait_for(Condition.COMPLETE)
    status = training.get()["status"]
    assert training.pod()["metadata"]["uid"] == pod, "the very pod that the previous release started"
    assert status["progress"]["percent"] == 100
    assert status.get("restarts", 0) == 0


def test_an_operator_that_violates_restricted_is_refused(release: Release) -> None:
    """So that the namespace's label, under which it runs, says something."""
    release.upgrade("--install", "--set", "podSecurityContext.runAsNonRoot=false")
    events = f"/api/v1/namespaces/{release.namespace}/events"

    def refused() -> list[str]:
        messages = [each["message"] for each in release.cluster.api.items(events)]
        return [message for message in messages if 'violates PodSecurity "restricted' in message]

    (message, *_) = wait_until(refused, "the event that says so", 60)
    assert "runAsNonRoot != true" in message
