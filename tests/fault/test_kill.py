"""The operator killed again and again while 50 jobs run; and two replicas of which one writes."""

import random
import time
from collections import Counter

from finetune_api import names
from tests.cluster.harness.containers import Life
from tests.cluster.harness.waiting import wait_until
from tests.cluster.operator_process import USER, OperatorProcess
from tests.soak import SOAK, record

JOBS, KILLS = (200, 100) if SOAK else (50, 20)

# Each job's pods end in this order. What has to come of it: (phase, restarts, preemptions).
FATES = {
    "ok": ([0], ("Succeeded", 0, 0)),
    "retry": ([1, 0], ("Succeeded", 1, 0)),
    "preempted": ([75, 0], ("Succeeded", 0, 1)),
    "invalid": ([10], ("Failed", 0, 0)),
    "exhausted": ([1, 1], ("Failed", 1, 0)),
}


def test_fifty_jobs_survive_twenty_kills(control_plane, jobs, kubeconfig, namespace, tmp_path, kubelet):
    seed = random.randrange(1000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    pods: Counter[str] = Counter()

    def live(pod):
        name = pod["metadata"]["labels"][names.LABEL_JOB_NAME]
        codes = FATES[name.rsplit("-", 1)[0]][0]
        pods[name] += 1
        return Life(chance.uniform(0.2, 4.0), codes[min(pods[name], len(codes)) - 1])

    kubelet(mode="scripted", script=live)
    expected = {f"{fate}-{number}": FATES[fate][1] for number in range(JOBS // len(FATES)) for fate in FATES}
    begin = control_plane.audit.mark()
    operator = OperatorProcess(kubeconfig, namespace, tmp_path)
    waiting = list(expected)
    chance.shuffle(waiting)
    for _ in range(KILLS):
        with operator:
            for name in (waiting.pop() for _ in range(min(len(waiting), 1 + JOBS // KILLS))):
                jobs.create(name, runPolicy={"backoffLimit": 1})
            # A replica needs about 2 s to lead: kills fall before that, into the first passes, and into the routine.
            time.sleep(chance.uniform(0.5, 6.0))
            operator.kill()
    assert not waiting
    with operator:
        wait_until(
            lambda: all((job.get("status") or {}).get("completionTime") for job in jobs.all()),
            "the end of all jobs",
            seconds=180,
            describe=lambda: str(Counter((job.get("status") or {}).get("phase") for job in jobs.all())),
        )
        reached = {
            job["metadata"]["name"]: (job["status"]["phase"], job["status"]["restarts"], job["status"]["preemptions"])
            for job in jobs.all()
        }
    assert reached == expected
    # No duplicate child: one Job for each FineTuneJob, made once, and no pod more than the fates ask for.
    assert sorted(workload["metadata"]["name"] for workload in jobs.workloads()) == sorted(expected)
    assert pods == Counter({name: len(FATES[name.rsplit("-", 1)[0]][0]) for name in expected})
    writes = control_plane.audit.writes(begin, user=USER, namespace=namespace)
    made = Counter((w.resource, w.name) for w in writes if w.code == 201 and w.resource != "leases")
    assert {what: count for what, count in made.items() if count > 1} == {}
    # No Event twice: a repeated one has the same name, and the API server refuses it.
    assert len([event for event in jobs.api.items(f"/api/v1/namespaces/{namespace}/events") if event["involvedObject"]["kind"] == names.KIND and event["reason"] == "WorkloadCreated"]) == JOBS  # fmt: skip
    record("operator killed", kills=KILLS, jobs=JOBS, seed=seed, duplicates=0)


def test_of_two_replicas_one_writes_and_the_other_takes_over(
    control_plane, jobs, kubeconfig, namespace, tmp_path, kubelet
):
    kubelet(mode="scripted")
    first = OperatorProcess(kubeconfig, namespace, tmp_path, "a")
    second = OperatorProcess(kubeconfig, namespace, tmp_path, "b")
    holder = f"/apis/coordination.k8s.io/v1/namespaces/finetune-system/leases/{namespace}"
    with first:
        first.read_health("/readyz")
        wait_until(lambda: "finetune_operator_leader 1.0" in first.read_health("/metrics"), "the first to lead")
        with second:
            second.read_health("/readyz")
            for number in range(10):
                jobs.create(f"job-{number}")
            for number in range(10):
                jobs.wait_for(f"job-{number}", phase="Succeeded")
            # What each asked of the API server, by its own count.
            assert counted_writes(second.read_health("/metrics")) == {}
            # Of each job its beginning and its end; what is between them merges when passes come late.
            assert counted_writes(first.read_health("/metrics"))["finetunejobs/status"] >= 20
            leader = jobs.api.get(holder)["spec"]["holderIdentity"]
            jobs.create("after-the-kill")
            first.kill()
            began = time.monotonic()
            wait_until(lambda: jobs.api.get(holder)["spec"]["holderIdentity"] != leader, "a takeover", seconds=20)
            took = time.monotonic() - began
            print(f"takeover after {took:.1f} s")
            assert took < 15
            jobs.wait_for("after-the-kill", phase="Succeeded")


def counted_writes(metrics: str) -> dict[str, float]:
    """Writes but on Leases, by resource, from the operator's own metrics."""
    found: dict[str, float] = {}
    for line in metrics.splitlines():
        if line.startswith("finetune_operator_api_requests_total{"):
            labels, value = line.split("{")[1].split("} ")
            fields = dict(part.split("=", 1) for part in labels.replace('"', "").split(","))
            if fields["verb"] in ("create", "update", "patch", "delete") and fields["resource"] != "leases":
                found[fields["resource"]] = found.get(fields["resource"], 0) + float(value)
    return found
