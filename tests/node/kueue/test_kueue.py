"""Jobs in a queue of the real Kueue, on the real node. Building Kueue takes long, so `make test-kueue` runs it."""

import pytest

from finetune_api.names import Condition, Phase
from tests.chart.release import Release
from tests.cluster.harness.api import Object
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.node import NAME, Node
from tests.node.kueue.kueue import Kueue
from tests.node.small_jobs import SmallJob, prepare_place

QUEUE = "research"
LABELS = {"kubernetes.io/hostname": NAME}
QUEUED = {"resources": {"queueName": QUEUE}, "training": {"maxSteps": 300}}


@pytest.fixture(scope="module")
def kueue(node: Node) -> Kueue:
    return Kueue(node)


@pytest.fixture(scope="module")
def place(
    kueue: Kueue, release: Release, restricted_namespace: str, node: Node, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A namespace with model, data and a queue that has room for one job."""
    kueue.make_queue(restricted_namespace, QUEUE, cpu="150m", labels=LABELS)
    prepare_place(release, node.control_plane, restricted_namespace, tmp_path_factory.mktemp("model"))
    return restricted_namespace


def read_job(job: SmallJob, node: Node) -> Object:
    name = job.status()["workload"]["name"]
    return node.control_plane.api.get(f"/apis/batch/v1/namespaces/{job.namespace}/jobs/{name}")


def test_jobs_wait_for_their_turn_and_train_where_the_queue_says(node: Node, place: str) -> None:
    first, second = (SmallJob(node.control_plane, place, name, **QUEUED) for name in ("first", "second"))
    first.apply()
    wait_until(first.rows, "the first job's steps", 300, describe=first.describe)
    second.apply()
    wait_until(lambda: second.status().get("phase") == Phase.QUEUED, "phase Queued", 60, describe=second.describe)
    assert QUEUE in second.status()["message"]
    assert read_job(second, node)["spec"]["suspend"] is True
    # What Kueue put into the template stays there, however often the operator looks.
    assert read_job(first, node)["spec"]["template"]["spec"]["nodeSelector"] == LABELS
    first.wait_for(Condition.COMPLETE)
    second.wait_for(Condition.COMPLETE)
    assert second.weights() == first.weights()


def test_a_job_that_kueue_takes_away_saves_and_goes_on_in_its_next_turn(
    node: Node, place: str, kueue: Kueue, report: list[str]
) -> None:
    undisturbed = SmallJob(node.control_plane, place, "undisturbed", training={"maxSteps": 300})
    undisturbed.apply()
    undisturbed.wait_for(Condition.COMPLETE)
    job = SmallJob(node.control_plane, place, "taken", **QUEUED)
    job.apply()
    for _ in range(3):
        seen = len(job.rows())
        wait_until(lambda seen=seen: len(job.rows()) > seen, "more steps", 300, describe=job.describe)
        kueue.set_stop_policy(QUEUE, "HoldAndDrain")
        wait_until(lambda: not job.pods(), "the pod's end", 120, describe=job.describe)
        wait_until(lambda: job.status()["phase"] == Phase.QUEUED, "phase Queued", 60, describe=job.describe)
        kueue.set_stop_policy(QUEUE, "None")
    job.wait_for(Condition.COMPLETE)
    assert job.status().get("lostSteps", 0) == job.status().get("restarts", 0) == 0
    assert job.rows() == undisturbed.rows()
    assert job.weights() == undisturbed.weights()
    report.append("Kueue: taken away 3 times, 0 steps lost")
