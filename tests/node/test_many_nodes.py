"""Jobs of two pods on the real node: by Kubernetes' own Job controller, and by Kubeflow's training operator."""

import json
import time
from collections import defaultdict
from collections.abc import Callable

import pytest

from finetune_api.names import Condition
from tests.chart.release import Release
from tests.cluster.harness.api import Object
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.node import NAME, Node
from tests.node.harness.training_operator import TrainingOperator
from tests.node.small_jobs import SmallJob, prepare_place
from tests.node.trainers import find_trainers, is_told_to_stop, kill_trainer

STEPS, INTERVAL = 200, 20
BACKENDS = ("Job", "PyTorchJob")


@pytest.fixture(scope="module")
def place(release: Release, restricted_namespace: str, node: Node, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A namespace with model and data, on a cluster with both operators."""
    TrainingOperator(node)
    prepare_place(release, node.control_plane, restricted_namespace, tmp_path_factory.mktemp("model"))
    return restricted_namespace


def losses(job: SmallJob) -> list[float]:
    """Of each step, as the trainer kept them in the newest checkpoint."""
    folders = (job.output() / "checkpoints").rglob("checkpoint-*")
    newest = max((each for each in folders if each.is_dir()), key=lambda folder: int(folder.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def undisturbed(node: Node, place: str, report: list[str]) -> Callable[[str, str], SmallJob]:
    """``undisturbed(strategy, backend)``: a complete job; each is run once."""
    jobs: dict[tuple[str, str], SmallJob] = {}

    def run(strategy: str, backend: str) -> SmallJob:
        key = strategy, backend
        if key not in jobs:
            began = time.monotonic()
            job = SmallJob(node.control_plane, place, f"{strategy}-{backend.lower()}", **build(strategy, backend))
            job.apply()
            job.wait_for(Condition.COMPLETE, minutes=10)
            report.append(f"two pods, {strategy}, {backend}: complete after {time.monotonic() - began:.0f} s")
            jobs[key] = job
        return jobs[key]

    return run


def build(strategy: str, backend: str, **parallelism: Object) -> dict[str, Object]:
    return {
        "training": {"maxSteps": STEPS},
        "checkpoint": {"everySteps": INTERVAL},
        "parallelism": {"nodes": 2, "strategy": strategy, "backend": backend} | parallelism,
    }


def rows_of_steps(job: SmallJob) -> dict[int, list[str]]:
    """What all ranks together were given for each step, in no order."""
    steps: dict[int, list[str]] = defaultdict(list)
    for rank in range(2):
        for row in job.rows(rank):
            steps[row["step"]].append(row["rows"])
    return {step: sorted(rows) for step, rows in steps.items()}


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_both_backends_train_to_the_same(undisturbed: Callable[[str, str], SmallJob], strategy: str) -> None:
    one, other = (undisturbed(strategy, backend) for backend in BACKENDS)
    for job, backend in ((one, "Job"), (other, "PyTorchJob")):
        status = job.status()
        assert status["workload"]["kind"] == backend
        assert status["plan"]["nodes"] == 2
        assert len(job.rows(0)) == len(job.rows(1)) == STEPS
        assert job.rows(0) != job.rows(1)
    assert losses(one) == losses(other)
    assert len(losses(one)) == STEPS
    assert one.weights() == other.weights()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_worker_comes_back_and_all_go_on_from_the_checkpoint(
    node: Node, place: str, undisturbed: Callable[[str, str], SmallJob], backend: str
) -> None:
    expected = undisturbed("ddp", "Job").weights()
    job = SmallJob(node.control_plane, place, f"killed-{backend.lower()}", **build("ddp", backend))
    job.apply()
    wait_until(lambda: len(job.rows()) > 50, "50 steps", 300, describe=job.describe)
    kill_trainer(max(job.pods(), key=lambda pod: pod["metadata"]["name"]))
    job.wait_for(Condition.COMPLETE, minutes=10)
    status = job.status()
    assert status["restarts"] == 1  # the victim's peer is not counted
    assert status["lostSteps"] <= INTERVAL + 1
    assert job.weights() == expected
    print(job.kubectl("get", "finetunejob", "--output", "wide"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_elastic_job_goes_on_without_an_evicted_pod_and_with_it_again(
    node: Node, place: str, undisturbed: Callable[[str, str], SmallJob], report: list[str], backend: str
) -> None:
    expected = rows_of_steps(undisturbed("ddp", "Job"))
    job = SmallJob(
        node.control_plane, place, f"elastic-{backend.lower()}", **build("ddp", backend, elastic={"minNodes": 1})
    )
    began = time.monotonic()
    job.apply()
    wait_until(lambda: len(job.rows(1)) > 20, "steps of two nodes", 300, describe=job.describe)
    first, second = sorted(job.pods(), key=lambda pod: pod["metadata"]["name"])

    def count_nodes() -> int:
        return job.status().get("progress", {}).get("nodes", 0)

    # Another pod in its place would be there before the next round begins.
    node.control_plane.kubectl("cordon", NAME)
    try:
        job.evict(second["metadata"]["name"])
        wait_until(lambda: count_nodes() == 1, "one node", 120, describe=job.describe)
        wait_until(lambda: len(job.rows(0)) > len(job.rows(1)) + 4, "steps of one node", 120, describe=job.describe)
        (rank,) = (process for process in find_trainers(first) if "LOCAL_RANK" in process.environ())
        # It stands still until the other one is there, or it might be done before.
        rank.suspend()
        before = len(job.rows(1))
    finally:
        node.control_plane.kubectl("uncordon", NAME)
    wait_until(lambda: is_told_to_stop(rank), "the pod in its place", 300, describe=job.describe)
    rank.resume()
    job.wait_for(Condition.COMPLETE, minutes=10)
    status = job.status()
    assert (status["preemptions"], status["restarts"], status.get("lostSteps", 0)) == (1, 0, 0)
    assert rows_of_steps(job) == expected
    assert before < len(job.rows(1)) < STEPS == len(expected)
    report.append(f"elastic, {backend}: 2 -> 1 -> 2 nodes, complete after {time.monotonic() - began:.0f} s")
