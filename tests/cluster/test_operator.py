"""The operator on the real API server, with scripted pods: what becomes of a job's children, budget and status."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kubernetes.client import ApiException

from finetune_api.progress import ArtifactRecord, Termination
from finetune_operator.manifests.metadata import build_metadata
from finetune_operator.spec.parse import parse_finetunejob
from tests.chart.release import RESTRICTED
from tests.cluster.harness.containers import Life
from tests.cluster.harness.waiting import wait_until
from tests.cluster.operator_process import USER, OperatorProcess


def words(reason: str, message: str, **fields) -> str:
    return Termination(reason=reason, message=message, **fields).model_dump_json(by_alias=True)


def test_a_jobs_whole_life_costs_eight_writes_and_rest_costs_none(control_plane, namespace, jobs, operator, kubelet):
    artifact = ArtifactRecord(type="adapter", path="/mnt/finetune/output/adapter", bytes=1, sha256="0")
    end = words("Succeeded", "Trained.", step=9, total_steps=9, checkpoint_step=9, artifacts=(artifact,))
    kubelet(mode="scripted", script=lambda pod: Life(2.0, 0, end))
    operator.read_health("/readyz")
    begin = control_plane.audit.mark()
    jobs.create("life")
    status = jobs.wait_for("life", phase="Succeeded")
    assert status["progress"]["percent"] == 100
    ended = control_plane.audit.mark()
    writes = [w for w in control_plane.audit.writes(begin, ended, user=USER) if w.resource != "leases"]
    print("\n".join(map(str, writes)))
    assert [w.code for w in writes if w.code >= 400] == []
    assert len(writes) <= 8
    time.sleep(3)  # the last events of the children
    rest = control_plane.audit.mark()
    time.sleep(15)
    at_rest = control_plane.audit.requests(rest, user=USER)
    print("at rest, 15 s:", control_plane.audit.count(rest, user=USER))
    assert {request.resource for request in at_rest} <= {"leases"}


def test_failures_are_retried_within_the_budget_and_the_end_stands(control_plane, jobs, operator, kubelet):
    kubelet(mode="scripted", script=lambda pod: Life(0.2, 1, words("TrainerError", "boom")))
    jobs.create("fails", runPolicy={"backoffLimit": 1})
    status = jobs.wait_for("fails", phase="Failed")
    assert status["restarts"] == 1
    assert "boom" in status["message"]
    control_plane.kubectl("wait", "--for=condition=Failed", "ftj/fails", "--timeout=5s", namespace=jobs.namespace)
    # A finished job whose child is deleted is not run again.
    jobs.delete_workload("fails")
    wait_until(lambda: not jobs.workloads(), "the Job gone")
    time.sleep(3)
    assert jobs.workloads() == []
    assert jobs.get("fails")["status"] == status


@pytest.mark.parametrize(
    ("code", "reason"), [(10, "InvalidPlanOrData"), (11, "OutOfMemory"), (12, "CheckpointUnusable"), (13, "GateFailed")]
)
def test_hopeless_exits_fail_at_once(jobs, operator, kubelet, code, reason):
    kubelet(mode="scripted", script=lambda pod: Life(0.2, code, words(reason, "Lower maxLength.")))
    jobs.create("hopeless")
    status = jobs.wait_for("hopeless", phase="Failed")
    assert status["restarts"] == 0
    assert status["message"] == "Lower maxLength."
    assert reason in {condition["reason"] for condition in status["conditions"]}


def test_preemptions_do_not_count(jobs, operator, kubelet):
    ends = iter([75, 75, 0])
    kubelet(
        mode="scripted",
        script=lambda pod: Life(0.3, next(ends), words("Preempted", "Saved at step 5.", checkpoint_step=5)),
    )
    jobs.create("spot", runPolicy={"backoffLimit": 0})
    status = jobs.wait_for("spot", phase="Succeeded", seconds=120)
    assert (status["restarts"], status["preemptions"]) == (0, 2)
    assert status["checkpoints"]["latest"]["step"] == 5


def test_a_running_workload_that_is_deleted_is_made_again_with_what_is_left_of_the_budget(jobs, operator, kubelet):
    lives = iter([Life(0.2, 1), Life(600), Life(0.5)])
    kubelet(mode="scripted", script=lambda pod: next(lives))
    jobs.create("deleted", runPolicy={"backoffLimit": 2})
    jobs.wait_for("deleted", restarts=1, phase="Preparing")
    first = jobs.workloads()[0]
    jobs.delete_workload("deleted")
    status = jobs.wait_for("deleted", phase="Succeeded")
    second = jobs.workloads()[0]
    assert status["workload"]["uid"] == second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["spec"]["backoffLimit"] == 1
    assert status["restarts"] == 1


def test_a_used_up_budget_stops_the_job_until_it_is_raised(kubeconfig, namespace, tmp_path, jobs, kubelet):
    kubelet(mode="scripted", capacity={"nvidia.com/gpu": "4"}, script=lambda pod: Life(600, exit_code_on_sigterm=75))
    with OperatorProcess(kubeconfig, namespace, tmp_path, progressInterval="2s"):
        # Ten seconds of four GPUs.
        jobs.create("spender", resources={"gpu": {"count": 4}}, budget={"maxGpuHours": 0.0111})
        status = jobs.wait_for("spender", phase="Suspended", seconds=60)
        assert "budget.maxGpuHours allows 0.0111. Raise it" in status["message"]
        spent = status["gpuHours"]
        assert 0.0111 <= spent < 0.03
        wait_until(lambda: not jobs.children("pods"), "no pod holds its GPUs")
        jobs.patch_spec("spender", budget={"maxGpuHours": 100})
        status = jobs.wait_for("spender", phase="Preparing", seconds=60)
        assert status["gpuHours"] >= spent
    with pytest.raises(ApiException, match=r"only budget and runPolicy\."):
        jobs.patch_spec("spender", method={"rank": 4})


def test_suspend_and_resume(jobs, operator, kubelet):
    lives = iter([Life(600, exit_code_on_sigterm=75), Life(0.3)])
    kubelet(mode="scripted", script=lambda pod: next(lives))
    jobs.create("pause")
    jobs.wait_for("pause", phase="Preparing")
    jobs.patch_spec("pause", runPolicy={"suspend": True})
    jobs.wait_for("pause", phase="Suspended")
    wait_until(lambda: not jobs.children("pods"), "no pod while suspended")
    jobs.patch_spec("pause", runPolicy={"suspend": False})
    status = jobs.wait_for("pause", phase="Succeeded")
    assert (status["restarts"], status["preemptions"]) == (0, 0)


def test_deletion_collects_the_children_and_keeps_the_output(control_plane, jobs, operator, kubelet):
    kubelet(mode="scripted")
    jobs.create("gone")
    jobs.create("all-gone", output={"volume": {"whenDeleted": "Delete"}})
    for name in ("gone", "all-gone"):
        jobs.wait_for(name, phase="Succeeded")
    control_plane.kubectl("delete", "ftj", "gone", "all-gone", namespace=jobs.namespace)
    wait_until(
        lambda: not jobs.workloads() and not jobs.children("configmaps") and not jobs.children("pods"), "no children"
    )
    wait_until(lambda: len(jobs.children("persistentvolumeclaims")) == 1, "one claim")
    assert [claim["metadata"]["name"] for claim in jobs.children("persistentvolumeclaims")] == ["gone-output"]
    # The name can be used again, and so can the claim.
    jobs.create("gone")
    jobs.wait_for("gone", phase="Succeeded")


def test_somebody_elses_job_is_left_alone(control_plane, jobs, operator, kubelet):
    kubelet(mode="scripted")
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}
    path = f"/apis/batch/v1/namespaces/{jobs.namespace}/jobs"
    foreign = jobs.api.post(path, {"metadata": {"name": "taken"}, "spec": {"suspend": True, "template": {"spec": pod}}})
    jobs.create("taken")
    status = jobs.wait_for("taken", phase="Pending")
    assert "isn't this FineTuneJob's" in status["message"]
    assert "workload" not in status
    assert jobs.api.get(f"{path}/taken")["spec"] == foreign["spec"]
    assert "NameConflict" in control_plane.kubectl("describe", "ftj", "taken", namespace=jobs.namespace)
    jobs.delete_workload("taken")
    jobs.wait_for("taken", phase="Succeeded")


def test_a_plan_of_a_pass_that_died_is_replaced(kubeconfig, namespace, jobs, tmp_path, kubelet):
    """A ConfigMap that was made before the spec changed, and no Job: nothing ran by it, so it is made anew."""
    kubelet(mode="scripted")
    owner = jobs.create("outdated")
    metadata = build_metadata(parse_finetunejob(owner), "outdated-plan")
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    old = jobs.api.post(path, {"metadata": metadata, "immutable": True, "data": {"plan.json": "{}"}})
    with OperatorProcess(kubeconfig, namespace, tmp_path):
        jobs.wait_for("outdated", phase="Succeeded")
    new = jobs.api.get(f"{path}/outdated-plan")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert json.loads(new["data"]["plan.json"])["job"]["runId"] == owner["metadata"]["uid"]


def test_what_people_see(control_plane, jobs, operator, kubelet):
    kubelet(
        mode="scripted",
        script=lambda pod: Life(1.0, 0, words("Succeeded", "Trained 9 steps.", step=9, total_steps=9, loss=0.5)),
    )
    jobs.create("shown")
    jobs.wait_for("shown", phase="Succeeded")
    table = control_plane.kubectl("get", "ftj", "-o", "wide", namespace=jobs.namespace)
    described = control_plane.kubectl("describe", "ftj", "shown", namespace=jobs.namespace)
    print(table, described, sep="\n")
    header, row = table.splitlines()
    assert header.split()[:6] == ["NAME", "METHOD", "OBJECTIVE", "PHASE", "PROGRESS", "LOSS"]
    assert row.split()[:4] == ["shown", "lora", "sft", "Succeeded"]
    assert "WorkloadCreated" in described
    assert "Trained 9 steps." in described


@pytest.mark.parametrize("spec", [{}, {"method": {"type": "qlora", "rank": 8}, "output": {"artifacts": ["adapter", "merged"]}, "resources": {"gpu": {"count": 2, "product": "A100"}, "cpu": 4}, "model": {"source": "hf://org/model", "cache": {"size": "5Gi"}}}], ids=["small", "large"])  # fmt: skip
def test_render_prints_what_was_applied(control_plane, jobs, operator, spec):
    begin = control_plane.audit.mark()
    jobs.create("rendered", **spec)
    jobs.wait_for("rendered", phase="Pending")
    applied = [write.body for write in control_plane.audit.writes(begin, user=USER, namespace=jobs.namespace) if write.verb == "patch"]  # fmt: skip
    command = [Path(sys.executable).with_name("finetune"), "render", "-f", "-", "-o", "json"]
    live = json.dumps(jobs.get("rendered"))
    rendered = json.loads(subprocess.run(command, input=live, capture_output=True, text=True, check=True).stdout)
    assert rendered["items"] == applied
    assert len(applied) == (4 if spec else 3)


def test_a_graceful_end_lets_the_next_in_at_once(kubeconfig, namespace, jobs, tmp_path, kubelet):
    kubelet(mode="scripted")
    with OperatorProcess(kubeconfig, namespace, tmp_path) as first:
        jobs.create("one")
        jobs.wait_for("one", phase="Succeeded")
        assert first.stop() == 0
    with OperatorProcess(kubeconfig, namespace, tmp_path, "b"):
        began = time.monotonic()
        jobs.create("two")
        jobs.wait_for("two", phase="Succeeded")
        assert time.monotonic() - began < 10


def test_a_pod_that_is_forbidden_is_told_of_in_the_status(control_plane, jobs, operator):
    control_plane.api.patch(f"/api/v1/namespaces/{jobs.namespace}", {"metadata": {"labels": RESTRICTED}})
    jobs.create("root", podTemplate={"securityContext": {"runAsNonRoot": False, "runAsUser": 0}})

    def told() -> str:
        return (jobs.get("root").get("status") or {}).get("message", "")

    wait_until(lambda: "violates PodSecurity" in told(), "the reason in the status", 60, describe=told)
    assert jobs.get("root")["status"]["conditions"]
