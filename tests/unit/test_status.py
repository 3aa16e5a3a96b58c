from datetime import timedelta

import pytest

from finetune_api.errors import Problem
from finetune_api.exit_codes import TABLE, ExitCode, Retry
from finetune_api.names import Phase, Reason
from finetune_api.progress import ArtifactRecord, Progress, Termination
from finetune_operator.observe.snapshot import parse_workload
from finetune_operator.spec.parse import parse_finetunejob
from finetune_operator.status.decide import decide_status
from finetune_operator.status.events import decide_events
from finetune_operator.status.stage import decide_stage, is_finished
from tests.unit.world import (
    NOW,
    RUNNING,
    UID,
    build_finetunejob,
    build_pod,
    build_snapshot,
    build_workload,
    decide,
    exited,
)


def status_of(snapshot, problems=(), obstacle=None, refusal=None):
    stage = decide_stage(snapshot, list(problems), obstacle, refusal)
    finetunejob = snapshot.finetunejob
    job, decided = (None, None) if problems else (parse_finetunejob(finetunejob), decide(finetunejob)[0])
    return stage, decide_status(snapshot, stage, job, decided)


def true_conditions(status):
    return {condition["type"] for condition in status["conditions"] if condition["status"] == "True"}


def words(**fields):
    return Termination(**({"reason": "Succeeded", "message": "Trained."} | fields)).model_dump_json(by_alias=True)


def test_created():
    _, status = status_of(build_snapshot(build_finetunejob(), build_workload()))
    assert status["phase"] == Phase.PENDING
    assert true_conditions(status) == {"Validated", "Progressing"}
    assert status["workload"] == {
        "kind": "Job",
        "name": "bot",
        "uid": "job-1",
        "restartsBefore": 0,
        "preemptionsBefore": 0,
        "savedStepBefore": 0,
        "counted": [],
    }
    assert status["startTime"] == "2026-01-01T12:00:00Z"
    assert all(condition["observedGeneration"] == 1 for condition in status["conditions"])


REFUSALS = {
    'Error creating: pods "bot-x7kq2" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=8': "The pod is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=8",
    "Error creating: Internal error occurred: failed calling webhook": "The pod can't be made: Internal error occurred: failed calling webhook",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_a_refused_pod_is_told_with_the_reason(words):
    snapshot = build_snapshot(build_finetunejob(), build_workload(), pod_refusal=words)
    stage, status = status_of(snapshot)
    assert (status["phase"], stage.reason, status["message"]) == (Phase.PENDING, Reason.POD_REFUSED, REFUSALS[words])
    (event,) = decide_events(stage, {"workload": status["workload"], "phase": Phase.PENDING}, status)
    assert (event.type, event.reason) == ("Warning", Reason.POD_REFUSED)


def test_a_job_lacks_pods_only_while_it_should_have_some():
    def lacks(seconds: float, **fields) -> bool:
        job = build_workload(**fields)
        job["status"]["startTime"] = (NOW - timedelta(seconds=seconds)).isoformat()
        return parse_workload(job).lacks_pods(NOW)

    assert lacks(6)
    assert not lacks(4)
    assert not lacks(6, finished=("Complete", ""))
    assert not parse_workload(build_workload(suspend=True)).lacks_pods(NOW)


def test_invalid_spec_fails_until_it_is_mended():
    problem = Problem("spec.method.rank", 0, "must be 1 or more", "use 16")
    stage, status = status_of(build_snapshot(build_finetunejob()), [problem])
    assert stage.reason == Reason.INVALID_SPEC and "spec.method.rank: 0: must be 1 or more; use 16" in status["message"]
    assert true_conditions(status) == {"Failed"}
    assert not is_finished(status) and "completionTime" not in status


def test_progress_reaches_the_status_and_the_same_figures_are_no_news():
    progress = Progress(run_id=UID, stage="training", step=40, total_steps=120, epoch=1.0, loss=1.23456, tokens_per_second=512.7, eta_seconds=75, checkpoint_step=30)  # fmt: skip
    snapshot = build_snapshot(build_finetunejob(), build_workload(), [build_pod(RUNNING)], progress=progress)
    stage, status = status_of(snapshot)
    assert status["message"] == "Step 40 of 120, loss 1.235, about 1m15s left."
    assert status["progress"] == {"step": 40, "totalSteps": 120, "percent": 33, "epoch": 1.0, "loss": 1.235, "tokensPerSecond": 512, "etaSeconds": 75, "updatedAt": "2026-01-01T12:00:00Z"}  # fmt: skip
    assert status["checkpoints"]["latest"] == {"step": 30, "uri": f"pvc://bot-output/checkpoints/{UID}/checkpoint-30"}
    assert true_conditions(status) == {"Validated", "Progressing", "Ready"}
    for news in (progress, None):
        again = build_snapshot(build_finetunejob(status), build_workload(), [build_pod(RUNNING)], progress=news, now=NOW + timedelta(minutes=1))  # fmt: skip
        assert status_of(again)[1] == status
    assert decide_events(stage, {"phase": Phase.PREPARING, "workload": status["workload"]}, status) == []


def test_what_is_in_a_bucket_has_its_address():
    output = {"destination": "s3://models/bot/"}
    progress = Progress(run_id=UID, stage="training", step=40, total_steps=120, checkpoint_step=30)
    running = build_snapshot(build_finetunejob(output=output), build_workload(), [build_pod(RUNNING)], progress=progress)  # fmt: skip
    uri = f"s3://models/bot/checkpoints/{UID}/checkpoint-30"
    assert status_of(running)[1]["checkpoints"]["latest"] == {"step": 30, "uri": uri}
    done = words(step=120, total_steps=120, artifacts=(ArtifactRecord(type="adapter", path="/mnt/finetune/output/adapter", bytes=10, sha256="ab"),))  # fmt: skip
    ended = build_snapshot(build_finetunejob(output=output), build_workload(finished=("Complete", "CompletionsReached")), [build_pod(exited(0, done))])  # fmt: skip
    assert status_of(ended)[1]["artifacts"][0]["uri"] == "s3://models/bot/adapter"


def test_conditions_keep_their_transition_time():
    _, first = status_of(build_snapshot(build_finetunejob(), build_workload()))
    later = build_snapshot(
        build_finetunejob(first), build_workload(), [build_pod(RUNNING)], now=NOW + timedelta(minutes=5)
    )
    _, second = status_of(later)
    assert {c["lastTransitionTime"] for c in second["conditions"]} == {"2026-01-01T12:00:00Z"}
    assert second["phase"] == Phase.PREPARING


def test_success():
    done = words(step=120, total_steps=120, loss=0.5, eval_loss=0.7, artifacts=(ArtifactRecord(type="adapter", path="/mnt/finetune/output/adapter", bytes=10, sha256="ab"),))  # fmt: skip
    snapshot = build_snapshot(build_finetunejob(), build_workload(finished=("Complete", "CompletionsReached")), [build_pod(exited(0, done))])  # fmt: skip
    stage, status = status_of(snapshot)
    assert true_conditions(status) == {"Validated", "Complete"} and status["phase"] == Phase.SUCCEEDED
    assert status["artifacts"] == [{"type": "adapter", "uri": "pvc://bot-output/adapter", "bytes": 10, "sha256": "ab"}]
    assert status["progress"]["percent"] == 100 and status["progress"]["evalLoss"] == 0.7
    assert [event.reason for event in decide_events(stage, {"workload": status["workload"]}, status)] == [
        Reason.SUCCEEDED
    ]
    # The end stands, whatever becomes of the children.
    for gone in (None, build_workload(uid="another")):
        after = build_snapshot(build_finetunejob(status), gone, now=NOW + timedelta(days=1))
        assert status_of(after)[1]["phase"] == Phase.SUCCEEDED
        assert status_of(after)[1]["artifacts"] == status["artifacts"]


@pytest.mark.parametrize("code", [code for code, meaning in TABLE.items() if meaning.retry is Retry.NEVER and code])
def test_hopeless_exits_tell_their_reason(code):
    pod = build_pod(exited(code, words(reason=TABLE[code].reason, message="Column 'text' is missing; name it.")))
    still = build_snapshot(build_finetunejob({"phase": Phase.PREPARING, "message": "x"}), build_workload(), [pod])
    assert status_of(still)[0].phase == Phase.PREPARING  # the Job controller has not decided yet
    ended = build_snapshot(
        build_finetunejob(), build_workload(failed=1, finished=("Failed", "PodFailurePolicy")), [pod]
    )
    stage, status = status_of(ended)
    assert (stage.reason, status["message"]) == (TABLE[code].reason, "Column 'text' is missing; name it.")
    assert status["restarts"] == 0 and is_finished(status)


def test_restarts_are_counted_once_they_happened():
    first = build_pod(exited(1, words(reason="TrainerError", message="boom")))
    undecided = build_snapshot(
        build_finetunejob({"phase": Phase.PREPARING, "message": "x"}), build_workload(failed=0), [first]
    )
    assert status_of(undecided)[1]["restarts"] == 0
    stage, status = status_of(build_snapshot(build_finetunejob(), build_workload(failed=1), [first]))
    assert (stage.reason, status["restarts"]) == (Reason.RESTARTING, 1)
    assert "boom" in status["message"]
    assert [event.type for event in decide_events(stage, {"workload": status["workload"]}, status)] == ["Warning"]


def test_preemptions_are_free_and_survive_the_pods():
    pods = [build_pod(exited(75), name="a"), build_pod(exited(1), name="b", conditions=[{"type": "DisruptionTarget", "status": "True"}])]  # fmt: skip
    _, status = status_of(build_snapshot(build_finetunejob(), build_workload(), pods))
    assert (status["restarts"], status["preemptions"]) == (0, 2)
    _, later = status_of(build_snapshot(build_finetunejob(status), build_workload(), []))
    assert later["preemptions"] == 2


def test_a_suspended_pod_is_no_preemption():
    pod = build_pod(exited(75), metadata={"deletionTimestamp": "2026-01-01T11:59:00Z"})
    snapshot = build_snapshot(build_finetunejob(runPolicy={"suspend": True}), build_workload(suspend=True), [pod])
    stage, status = status_of(snapshot)
    assert stage.phase == Phase.SUSPENDED and status["preemptions"] == 0
    assert true_conditions(status) == {"Validated", "Suspended"}
    resumed = build_snapshot(build_finetunejob(status), build_workload())
    after_stage, after = status_of(resumed)
    assert [event.reason for event in decide_events(after_stage, status, after)] == [Reason.RESUMED]


def test_a_workload_made_anew_goes_on_with_the_budget():
    before = {
        "restarts": 2,
        "preemptions": 1,
        "workload": {"uid": "job-1", "restartsBefore": 0, "preemptionsBefore": 0},
    }
    _, status = status_of(
        build_snapshot(build_finetunejob(before), build_workload(uid="job-2", failed=1), [build_pod(RUNNING)])
    )
    assert status["restarts"] == 3
    assert status["workload"]["restartsBefore"] == 2 and status["preemptions"] == 1


@pytest.mark.parametrize(("seconds", "reason"), [(5, Reason.CREATED), (20, Reason.UNSCHEDULABLE)])
def test_unschedulable_only_when_it_lasts(seconds, reason):
    since = (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes", "lastTransitionTime": since}  # fmt: skip
    stage, _ = status_of(build_snapshot(build_finetunejob(), build_workload(), [build_pod(conditions=[condition])]))
    assert stage.reason == reason
    assert (stage.look_again_seconds == pytest.approx(11)) if reason == Reason.CREATED else "0/3 nodes" in stage.message


def test_image_errors_are_told():
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}
    stage, _ = status_of(build_snapshot(build_finetunejob(), build_workload(), [build_pod(waiting)]))
    assert (stage.reason, stage.message) == (Reason.IMAGE_PULL, "manifest unknown")


def test_the_kernels_oom_kill_names_the_field():
    pod = build_pod({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    snapshot = build_snapshot(
        build_finetunejob(), build_workload(failed=4, finished=("Failed", "BackoffLimitExceeded")), [pod]
    )
    stage, status = status_of(snapshot)
    assert stage.reason == Reason.BACKOFF_LIMIT_EXCEEDED and "resources.memory" in stage.message
    assert status["restarts"] == 3


def test_deadline():
    stage, _ = status_of(build_snapshot(build_finetunejob(), build_workload(finished=("Failed", "DeadlineExceeded"))))
    assert stage.reason == Reason.DEADLINE_EXCEEDED


def test_exit_codes_have_one_meaning_each():
    assert {int(code) for code in TABLE} == {0, 1, 10, 11, 12, 13, 14, 75, 76}
    assert TABLE[ExitCode.PREEMPTED].retry is TABLE[ExitCode.PEER_LOST].retry is Retry.FREE
