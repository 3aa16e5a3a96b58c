"""Pods of running jobs are taken away at random moments; what is trained is what an undisturbed run trains, bit for bit.

FINETUNE_SOAK=1: twenty times each instead of three.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.names import Condition
from finetune_trainer.files import hash_folder
from tests.chart.release import Release
from tests.checkpoints import list_complete
from tests.cluster.harness.api import Object
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.machine import HOST_ADDRESS
from tests.node.harness.node import Node
from tests.node.small_jobs import ROWS, SmallJob, prepare_place
from tests.node.trainers import kill_trainer
from tests.soak import SOAK, record
from tests.tiny_model import build_tiny_model
from tests.trainer.plans import build_conversations
from tests.trainer.s3_server import BUCKET, S3Server

TIMES = 20 if SOAK else 3
STEPS = 3000 if SOAK else 400
ALL_KINDS: dict[str, dict[str, Object]] = {
    "sft": {"training": {"maxSteps": STEPS}},
    "packed": {"training": {"maxSteps": STEPS, "packing": "bfd", "maxLength": 96}},
    "accumulated": {"training": {"maxSteps": STEPS // 2, "perDeviceBatchSize": 1, "gradientAccumulation": 4}},
    "dpo": {"training": {"maxSteps": STEPS // 2}, "objective": {"type": "dpo"}},
    "two-ranks": {"training": {"maxSteps": STEPS // 2}, "parallelism": {"processes": 2}},
    "two-ranks-accumulated": {
        "training": {"maxSteps": STEPS // 2, "perDeviceBatchSize": 1, "gradientAccumulation": 4},
        "parallelism": {"processes": 2},
    },
    "two-ranks-packed-accumulated": {
        "training": {"maxSteps": STEPS // 2, "packing": "bfd", "maxLength": 96, "perDeviceBatchSize": 1, "gradientAccumulation": 4},
        "parallelism": {"processes": 2},
    },
}  # fmt: skip
INTERVAL = 20
"""Steps between two checkpoints of jobs whose trainers are killed."""
KINDS = ALL_KINDS if SOAK else {kind: ALL_KINDS[kind] for kind in ("dpo", "two-ranks-packed-accumulated")}


@pytest.fixture(scope="module")
def place(release: Release, restricted_namespace: str, node: Node, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A namespace with model and data, watched by the installed operator."""
    prepare_place(release, node.control_plane, restricted_namespace, tmp_path_factory.mktemp("model"))
    return restricted_namespace


def interrupt(job: SmallJob, number: int) -> None:
    """Lets the job train for a random moment, and evicts its pod."""
    seen = len(job.rows())
    wait_until(lambda: len(job.rows()) > seen, f"steps after interruption {number}", 300, describe=job.describe)
    time.sleep(random.uniform(0, 1.5))
    # The kubelet tells a moment later that it runs.
    (pod,) = wait_until(job.running_pods, "a running pod", describe=job.describe)
    job.evict(pod)
    wait_until(lambda: pod not in job.running_pods(), f"the end of {pod}", 150, describe=job.describe)


def kill(job: SmallJob, number: int) -> None:
    """Lets the job train for a random moment after a new checkpoint, and kills its trainer."""
    saved = job.saved_step()
    wait_until(lambda: job.saved_step() > saved, f"a checkpoint after kill {number}", 300, describe=job.describe)
    time.sleep(random.uniform(0, 1.5))
    (name,) = wait_until(job.running_pods, "a running pod", describe=job.describe)
    kill_trainer(next(pod for pod in job.pods() if pod["metadata"]["name"] == name))
    wait_until(lambda: name not in job.running_pods(), f"the end of {name}", describe=job.describe)


def last_rows(job: SmallJob) -> dict[int, Object]:
    """What each step was given, the last time it was done."""
    return {row["step"]: row for row in job.rows()}


def train_twice(
    node: Node, place: str, kind: str, disturb: Callable[[SmallJob, int], None], **sections: Object
) -> tuple[SmallJob, SmallJob, float]:
    """The same job undisturbed, and disturbed TIMES; both complete. And the seconds that the second one took."""
    undisturbed, disturbed = (
        SmallJob(node.control_plane, place, f"{kind}-{how}", **sections) for how in ("undisturbed", "disturbed")
    )
    undisturbed.apply()
    undisturbed.wait_for(Condition.COMPLETE, minutes=10)
    disturbed.apply()
    began = time.monotonic()
    for number in range(TIMES):
        disturb(disturbed, number)
    disturbed.wait_for(Condition.COMPLETE, minutes=10)
    return undisturbed, disturbed, time.monotonic() - began


@pytest.mark.parametrize("kind", KINDS)
def test_evicted_pods_lose_no_step(node: Node, place: str, kind: str, report: list[str]) -> None:
    undisturbed, disturbed, seconds = train_twice(node, place, kind, interrupt, **KINDS[kind])
    status = disturbed.status()
    assert status["preemptions"] == TIMES
    assert status.get("lostSteps", 0) == 0
    assert status.get("restarts", 0) == 0
    for rank in range(2 if "parallelism" in KINDS[kind] else 1):
        assert disturbed.rows(rank) == undisturbed.rows(rank)
    assert len(disturbed.rows()) >= status["progress"]["totalSteps"]
    assert disturbed.weights() == undisturbed.weights()
    report.append(f"{kind}: evicted {TIMES} times, 0 steps lost, complete after {seconds:.0f} s")
    record(f"evicted, {kind}", times=TIMES, lostSteps=0, sameRows=True, sameWeights=True, seconds=round(seconds))
    disturbed.delete()
    undisturbed.delete()


def test_killed_trainers_lose_less_than_an_interval_each(node: Node, place: str, report: list[str]) -> None:
    sections: dict[str, Object] = {
        "training": {"maxSteps": STEPS},
        "checkpoint": {"everySteps": INTERVAL},
        "runPolicy": {"backoffLimit": TIMES},
    }
    undisturbed, killed, seconds = train_twice(node, place, "killed", kill, **sections)
    status = killed.status()
    assert (status["restarts"], status.get("preemptions", 0)) == (TIMES, 0)
    assert 0 < status["lostSteps"] <= TIMES * (INTERVAL + 1)
    assert last_rows(killed) == last_rows(undisturbed)
    assert killed.weights() == undisturbed.weights()
    lost = status["lostSteps"]
    report.append(f"killed {TIMES} times, {lost} steps lost, complete after {seconds:.0f} s")
    record("killed", times=TIMES, interval=INTERVAL, lostSteps=lost, sameWeights=True, seconds=round(seconds))


def test_a_job_made_anew_goes_on_from_the_checkpoint_of_the_one_that_was_deleted(
    node: Node, place: str, report: list[str]
) -> None:
    """Its claim is the output's and the checkpoint's at once: one volume of the pod, mounted in two places."""
    deleted, undisturbed = (SmallJob(node.control_plane, place, name) for name in ("again", "again-undisturbed"))
    undisturbed.apply()
    undisturbed.wait_for(Condition.COMPLETE, minutes=10)
    deleted.apply()
    wait_until(lambda: deleted.rows(), "steps", 300, describe=deleted.describe)
    folder = deleted.output() / "checkpoints" / deleted.get()["metadata"]["uid"]
    deleted.delete()
    wait_until(lambda: not deleted.pods(), "the end of the deleted job's pods")
    (step,) = list_complete(folder)  # saved when it was told to stop
    uri = f"pvc://again-output/checkpoints/{folder.name}/checkpoint-{step}"
    anew = SmallJob(node.control_plane, place, "again", checkpoint={"resume": uri})
    anew.apply()
    anew.wait_for(Condition.COMPLETE, minutes=10)
    assert anew.rows() == undisturbed.rows()
    assert anew.weights() == undisturbed.weights()
    report.append(f"deleted at step {step} and made anew: same rows, same weights")


@pytest.fixture
def server(node: Node, tmp_path: Path) -> Iterator[S3Server]:
    """Beside the node, where its pods reach it."""
    server = S3Server(tmp_path, HOST_ADDRESS)
    yield server
    server.stop()


def test_a_job_that_has_all_in_buckets_goes_on_in_a_pod_that_has_nothing_of_the_first(
    node: Node, place: str, server: S3Server, tmp_path: Path, report: list[str]
) -> None:
    training: Object = {"training": {"maxSteps": STEPS}}
    undisturbed = SmallJob(node.control_plane, place, "claimed", **training)
    undisturbed.apply()
    undisturbed.wait_for(Condition.COMPLETE, minutes=10)

    build_tiny_model(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(build_conversations(ROWS))
    secret = {"metadata": {"name": "bucket"}, "stringData": server.environment}
    node.control_plane.api.post(f"/api/v1/namespaces/{place}/secrets", secret)
    destination = f"s3://{BUCKET}/results/bucketed"
    job = SmallJob(
        node.control_plane,
        place,
        "bucketed",
        **training,
        model={"source": server.put(tmp_path / "model", "models/tiny")},
        dataset={"source": server.put(rows, "data/rows.jsonl")},
        output={"destination": destination},
        podTemplate={"envFrom": [{"secretRef": {"name": "bucket"}}]},
    )
    job.apply()
    job.wait_for_step(5)
    (pod,) = wait_until(job.running_pods, "a running pod", describe=job.describe)
    job.evict(pod)
    job.wait_for(Condition.COMPLETE, minutes=10)
    status = job.status()
    assert (status["preemptions"], status.get("lostSteps", 0), status.get("restarts", 0)) == (1, 0, 0)
    assert status["checkpoints"]["latest"]["uri"].startswith(f"{destination}/checkpoints/")
    assert [artifact["uri"] for artifact in status["artifacts"]] == [f"{destination}/adapter"]
    folder = server.folder / "results" / "bucketed"
    assert hash_folder(folder / "adapter") == status["artifacts"][0]["sha256"]
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == undisturbed.weights()
    assert (folder / "result.json").exists()
    claims = node.control_plane.api.items(f"/api/v1/namespaces/{place}/persistentvolumeclaims")
    assert "bucketed-output" not in {claim["metadata"]["name"] for claim in claims}
    report.append("all in S3, evicted once: the next pod goes on, same weights, no claim")
