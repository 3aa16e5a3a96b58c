"""Pods that go away: what is told, counted and done, on one node and on several."""

from datetime import timedelta

import pytest

from finetune_api.names import Phase, Reason
from finetune_api.progress import Progress
from finetune_api.spec import Spot
from finetune_operator.intent import decide_intent
from finetune_operator.observe.counts import count_ends
from finetune_operator.run_state import RunState, read_run_state
from finetune_operator.status.market import decide_market
from finetune_operator.status.stage import decide_failure
from tests.unit.test_status import status_of, words
from tests.unit.world import (
    NOW,
    RUNNING,
    UID,
    build_finetunejob,
    build_pod,
    build_pytorchjob,
    build_snapshot,
    build_workload,
    decide,
    exited,
)

DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]
SAVED = words(reason="Preempted", message="told to stop", step=40, checkpointStep=40)
TWO = {"parallelism": {"nodes": 2}}


def pod(index, state, name=None, **fields):
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    return build_pod(state, name=name or f"bot-{index}", metadata={"labels": labels}, **fields)


def worker(index, state, ends=(), **fields):
    """A pod of a PyTorchJob whose container was started again in place after each of ``ends``."""
    labels = {"training.kubeflow.org/replica-index": str(index)}
    container = {"name": "pytorch", "restartCount": len(ends)}
    if ends:
        container["lastState"] = exited(ends[-1])
    return build_pod(state, name=f"bot-worker-{index}", metadata={"labels": labels}, container=container, **fields)


def test_from_running_over_preempted_and_resuming_to_running():
    job = build_finetunejob({"phase": Phase.RUNNING, "message": "Step 35 of 90."})
    stage, status = status_of(build_snapshot(job, build_workload(), [pod(0, exited(75, SAVED), conditions=DISRUPTED)]))
    assert (stage.phase, status["preemptions"], status["restarts"]) == (Phase.PREEMPTED, 1, 0)
    assert status["checkpoints"]["latest"]["step"] == 40
    # An evicted pod is gone before the next one is there: the story stays.
    stage, status = status_of(build_snapshot(build_finetunejob(status), build_workload(), []))
    assert (stage.phase, status["preemptions"]) == (Phase.PREEMPTED, 1)
    assert "told to stop" in status["message"]
    again = pod(0, RUNNING, name="again")
    stage, status = status_of(build_snapshot(build_finetunejob(status), build_workload(), [again]))
    assert (stage.phase, stage.message) == (Phase.RESUMING, "Goes on from the checkpoint of step 40.")
    progress = Progress(run_id=UID, stage="training", step=41, total_steps=90, lost_steps=2)
    stage, status = status_of(build_snapshot(build_finetunejob(status), build_workload(), [again], progress=progress))
    assert (stage.phase, status["preemptions"], status["lostSteps"]) == (Phase.RUNNING, 1, 2)


def test_a_pod_that_is_taken_away_without_a_word_is_not_said_to_have_failed():
    evicted = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    stage, _ = status_of(
        build_snapshot(build_finetunejob(), build_workload(), [pod(0, exited(143), conditions=evicted)])
    )
    assert stage.phase == Phase.PREEMPTED
    assert stage.message == "Starts again after: EvictionByEvictionAPI took the pod away before the trainer could save"


def test_from_restarting_over_resuming_to_running():
    saved = {"checkpoints": {"latest": {"step": 40, "uri": "pvc://bot/checkpoint-40"}}}
    job = build_finetunejob({"phase": Phase.RUNNING, "message": "Step 45 of 90."} | saved)
    failed = pod(0, exited(1, words(reason="TrainerError", message="boom")))
    stage, status = status_of(build_snapshot(job, build_workload(failed=1), [failed]))
    assert (stage.phase, stage.reason) == (Phase.PENDING, Reason.RESTARTING)
    # The Job may be made anew: the story stays.
    stage, status = status_of(build_snapshot(build_finetunejob(status | saved), build_workload(uid="job-2"), []))
    assert (stage.reason, stage.message, status["restarts"]) == (Reason.RESTARTING, "Starts again after: boom", 1)
    again = pod(0, RUNNING, name="again")
    stage, _ = status_of(build_snapshot(build_finetunejob(status), build_workload(uid="job-2"), [again]))
    assert (stage.phase, stage.message) == (Phase.RESUMING, "Goes on from the checkpoint of step 40.")


def test_an_evicted_pod_counts_once_before_and_after_its_end():
    ending = build_snapshot(build_finetunejob(), build_workload(), [pod(0, RUNNING, conditions=DISRUPTED)])
    _, status = status_of(ending)
    assert status["preemptions"] == 1
    ended = build_snapshot(build_finetunejob(status), build_workload(), [pod(0, exited(75), conditions=DISRUPTED)])
    _, status = status_of(ended)
    assert status["preemptions"] == 1


@pytest.mark.parametrize(
    ("codes", "disrupted", "preemptions"),
    [
        ((75, 75), (True, False), 1),
        ((75, 75), (False, True), 1),
        ((76, 137), (False, True), 1),
        ((76, 1), (False, False), 0),
        ((137, 76), (True, False), 1),
    ],
)
def test_a_gang_ends_as_one(codes, disrupted, preemptions):
    pods = [
        pod(index, exited(code), conditions=DISRUPTED if gone else [])
        for index, (code, gone) in enumerate(zip(codes, disrupted, strict=True))
    ]
    assert count_ends(build_snapshot(build_finetunejob(**TWO), build_workload(), pods)).preemptions == preemptions


def lose_each_other(status, times, **changes):
    """The status after both pods ended so often, each time without a cause."""
    for number in range(times):
        pods = [pod(index, exited(76), name=f"bot-{index}-{len(str(status))}-{number}") for index in range(2)]
        # The operator makes the workload anew.
        _, status = status_of(
            build_snapshot(build_finetunejob(status, **TWO), build_workload(uid=f"job-{number}"), pods)
        )
        status |= changes
    return status


def test_nodes_that_lose_each_other_again_and_again_fail():
    """Each end is free, and all of them together would burn GPUs for ever."""
    status = lose_each_other({}, 3)
    assert status["workload"]["peerLosses"] == 3
    again = [pod(index, RUNNING, name=f"again-{index}") for index in range(2)]
    running = build_snapshot(build_finetunejob(status, **TWO), build_workload(), again)
    assert decide_failure(running) is None
    assert count_ends(running).peer_losses == 3
    often = lose_each_other(status, 1)
    failure = decide_failure(build_snapshot(build_finetunejob(often, **TWO), build_workload(), again))
    assert failure is not None and failure.reason == Reason.BACKOFF_LIMIT_EXCEEDED
    assert "4 times in a row" in failure.message


@pytest.mark.parametrize(
    "change", [{"checkpoints": {"latest": {"step": 8, "uri": "pvc://a/b"}}}, {"preemptions": 1}, {"restarts": 1}]
)
def test_what_explains_a_loss_or_goes_on_begins_the_row_anew(change):
    status = lose_each_other({}, 4) | change
    assert lose_each_other(status, 1)["workload"]["peerLosses"] == 1


def test_the_node_that_failed_is_named_and_not_the_one_that_lost_it():
    pods = [
        pod(0, exited(76, words(reason="PeerLost", message="another node went away"))),
        pod(1, exited(1, words(reason="TrainerError", message="boom"))),
    ]
    stage, status = status_of(build_snapshot(build_finetunejob(**TWO), build_workload(failed=1), pods))
    assert (stage.reason, status["restarts"]) == (Reason.RESTARTING, 1)
    assert stage.message == "Starts again after: node 1: boom"


def test_a_gang_stands_still_as_long_as_one_pod_has_no_node():
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "no GPU",
        "lastTransitionTime": "2026-01-01T11:00:00Z",
    }
    pods = [pod(0, RUNNING), pod(1, None, conditions=[condition])]
    stage, _ = status_of(build_snapshot(build_finetunejob(**TWO), build_workload(), pods))
    assert (stage.phase, stage.reason) == (Phase.PENDING, Reason.UNSCHEDULABLE)


def test_containers_that_start_again_in_place_are_counted_by_their_ends():
    spec = {"parallelism": {"nodes": 2, "backend": "PyTorchJob"}}
    job, workload = build_finetunejob(**spec), build_pytorchjob(conditions=("Running",))
    snapshot = build_snapshot(job, workload, [worker(0, RUNNING, [75]), worker(1, RUNNING, [75])])
    _, status = status_of(snapshot)
    assert (status["preemptions"], status["restarts"]) == (1, 0)
    job = build_finetunejob(status, **spec)
    _, status = status_of(build_snapshot(job, workload, [worker(0, RUNNING, [75]), worker(1, RUNNING, [75, 1])]))
    assert (status["preemptions"], status["restarts"]) == (1, 1)
    _, status = status_of(build_snapshot(build_finetunejob(status, **spec), workload, [worker(0, RUNNING, [75])]))
    assert (status["preemptions"], status["restarts"]) == (1, 1)


def test_a_pytorchjob_is_ended_by_what_no_restart_mends():
    spec = {"parallelism": {"nodes": 2, "backend": "PyTorchJob"}}
    job = build_finetunejob(**spec)
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    hopeless = build_snapshot(job, build_pytorchjob(), [worker(0, RUNNING), worker(1, waiting, [10])])
    failure = decide_failure(hopeless)
    assert failure is not None and (failure.phase, failure.reason) == (Phase.FAILED, "InvalidPlanOrData")
    assert decide_intent(hopeless, decide(job)[1], has_failed=True).workload_patch == {"suspend": True}
    stopped = build_snapshot(job, build_pytorchjob(suspend=True), [])
    assert not decide_intent(stopped, decide(job)[1], has_failed=True).workload_patch
    often = build_finetunejob({"restarts": 3, "workload": {"uid": "job-1", "restartsBefore": 0, "preemptionsBefore": 0}}, **spec)  # fmt: skip
    assert decide_failure(build_snapshot(often, build_pytorchjob(), [worker(0, RUNNING)])) is None
    failure = decide_failure(build_snapshot(often, build_pytorchjob(), [worker(0, RUNNING, [1])]))
    assert failure is not None and failure.reason == Reason.BACKOFF_LIMIT_EXCEEDED


def test_more_preemptions_than_allowed_end_the_job():
    before = {"preemptions": 2, "workload": {"uid": "job-1", "restartsBefore": 0, "preemptionsBefore": 0}}
    job = build_finetunejob(before, spot={"enabled": True, "maxPreemptions": 2})
    assert decide_failure(build_snapshot(job, build_workload(market="spot"), [pod(0, RUNNING)])) is None
    ended = build_snapshot(job, build_workload(market="spot"), [pod(0, exited(75))])
    failure = decide_failure(ended)
    assert failure is not None and failure.reason == Reason.TOO_MANY_PREEMPTIONS
    assert decide_intent(ended, decide(job)[1], has_failed=True).workload_patch == {"suspend": True}


def test_a_preempted_job_is_made_anew_before_the_job_controller_lets_it_wait_for_long():
    once = {"preemptions": 1, "workload": WORKLOAD | {"counted": ["bot-0/0"]}}
    twice = once | {"preemptions": 2}
    assert not is_replaced(once, [])
    assert is_replaced(twice, [])
    assert is_replaced(twice, [pod(0, exited(75))])
    assert not is_replaced(twice, [pod(0, RUNNING)])
    assert not is_replaced(twice, [pod(0, exited(10))])
    assert not is_replaced(twice, [pod(0, exited(75), name="not-written-yet")])
    assert not is_replaced(twice, [], resources={"queueName": "team-a"})  # it would lose its turn
    assert not is_replaced(twice | {"workload": WORKLOAD | {"preemptionsBefore": 2}}, [])


def test_a_failed_job_is_made_anew_if_there_was_a_checkpoint_in_between():
    saved = {"checkpoints": {"latest": {"step": 40}}}
    once, twice = {"restarts": 1, "workload": WORKLOAD}, {"restarts": 2, "workload": WORKLOAD}
    failed = [pod(0, exited(1)), pod(0, exited(137), name="newer")]
    assert is_replaced(twice | saved, failed, build_workload(failed=2, backoffLimit=3))
    assert not is_replaced(once | saved, failed[:1], build_workload(failed=1, backoffLimit=3))
    # Without a checkpoint the wait is what it is for: whatever fails has time to recover.
    assert not is_replaced(twice, failed, build_workload(failed=2, backoffLimit=3))
    before = twice | saved | {"workload": WORKLOAD | {"savedStepBefore": 40}}
    assert not is_replaced(before, failed, build_workload(failed=2, backoffLimit=3))


def test_a_failed_job_is_kept_until_its_failures_are_counted():
    status = {"restarts": 2, "workload": WORKLOAD, "checkpoints": {"latest": {"step": 40}}}
    failed = [pod(0, exited(1)), pod(0, exited(1), name="newer")]
    assert not is_replaced(status, failed, build_workload(failed=3, backoffLimit=3))  # and is not written
    assert not is_replaced(status | {"restarts": 3}, failed, build_workload(failed=3, backoffLimit=2))  # ends the job
    counting = build_workload(failed=2, backoffLimit=3)
    counting["status"]["uncountedTerminatedPods"] = {"failed": ["uid"]}
    assert not is_replaced(status, failed, counting)
    failed[1]["metadata"]["finalizers"] = ["batch.kubernetes.io/job-tracking"]
    assert not is_replaced(status, failed, build_workload(failed=2, backoffLimit=3))


def test_the_deadline_counts_all_workloads():
    before = {"startTime": "2026-01-01T10:00:00Z", "activeSecondsBefore": 600}
    job = build_finetunejob({"workload": WORKLOAD | before}, runPolicy={"activeDeadline": "4h"})
    _, status = status_of(build_snapshot(job, build_workload(uid="job-2")))
    assert status["workload"]["activeSecondsBefore"] == 2 * 3600 + 600
    anew = build_workload(uid="job-2")
    for started, is_over in (("2026-01-01T11:00:00Z", False), ("2026-01-01T10:00:00Z", True)):
        anew["status"]["startTime"] = started
        job = build_finetunejob(status, runPolicy={"activeDeadline": "4h"})
        failure = decide_failure(build_snapshot(job, anew, [pod(0, RUNNING)]))
        assert (failure is not None and failure.reason == Reason.DEADLINE_EXCEEDED) == is_over
    assert "startTime" not in status_of(build_snapshot(build_finetunejob(), anew))[1]["workload"]


WORKLOAD = {"uid": "job-1", "restartsBefore": 0, "preemptionsBefore": 0}


def is_replaced(status, pods, workload=None, **spec):
    job = build_finetunejob(status, **spec)
    deleted = decide_intent(build_snapshot(job, workload or build_workload(), pods), decide(job)[1]).delete
    return [each["metadata"]["uid"] for each in deleted] == ["job-1"]


def test_the_workload_follows_the_market():
    job = build_finetunejob({"market": "on-demand"}, spot={"enabled": True, "provider": "karpenter"})
    manifests = decide(job, read_run_state(job))[1]
    assert manifests[-1]["spec"]["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    on_spot = build_snapshot(job, build_workload(market="spot"), [pod(0, RUNNING)])
    assert [each["kind"] for each in decide_intent(on_spot, manifests).delete] == ["Job"]
    assert not decide_intent(build_snapshot(job, build_workload(market="on-demand")), manifests).delete
    assert read_run_state(build_finetunejob()) == RunState(0, "spot")


SINCE = NOW - timedelta(hours=1)


@pytest.mark.parametrize(
    ("fallback", "status", "market"),
    [
        (None, {"market": "spot", "preemptions": 99}, "spot"),
        ({"afterPreemptions": 3}, {"market": "spot", "preemptions": 4, "marketPreemptions": 2}, "spot"),
        ({"afterPreemptions": 3}, {"market": "spot", "preemptions": 5, "marketPreemptions": 2}, "on-demand"),
        ({"afterPreemptions": 3}, {"market": "on-demand", "preemptions": 5}, "on-demand"),
        ({"afterPreemptions": 3, "backAfter": "2h"}, {"market": "on-demand"}, "on-demand"),
        ({"afterPreemptions": 3, "backAfter": "30m"}, {"market": "on-demand"}, "spot"),
        ({"afterWait": "30m"}, {"market": "spot"}, "on-demand"),
        ({"afterWait": "2h"}, {"market": "spot"}, "spot"),
    ],
)
def test_when_the_market_changes(fallback, status, market):
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "lastTransitionTime": "2026-01-01T10:00:00Z",
    }
    snapshot = build_snapshot(build_finetunejob(), build_workload(), [pod(0, None, conditions=[condition])])
    spot = Spot.model_validate({"enabled": True, "fallback": fallback})
    assert decide_market(spot, status | {"marketSince": SINCE.isoformat()}, snapshot) == market


def test_kueue_starts_and_stops_the_workload():
    job = build_finetunejob(resources={"queueName": "team-a"})
    manifests = decide(job)[1]
    assert manifests[-1]["spec"]["suspend"] is True
    assert manifests[-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    stage, _ = status_of(build_snapshot(job, build_workload(suspend=True)))
    assert (stage.phase, stage.reason) == (Phase.QUEUED, Reason.QUEUED)
    assert not decide_intent(build_snapshot(job, build_workload(suspend=False)), manifests).workload_patch
    paused = build_finetunejob(resources={"queueName": "team-a"}, runPolicy={"suspend": True})
    intent = decide_intent(build_snapshot(paused, build_workload(suspend=False)), decide(paused)[1])
    assert intent.workload_patch == {"suspend": True}
