"""FineTuneJobs against bare Jobs: the same pods on the same API server, in one run.

Peer: batch/v1 Jobs of the same rendered manifests, created by a client without any operator. What a FineTuneJob costs on top
(its ConfigMap, claim, status and Events) is the difference. Pods are scripted: nothing trains.

    python -m benchmarks.reconcile [--jobs N]
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from finetune_operator.manifests.build import build_manifests
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob
from tests.cluster.harness.containers import Life, ScriptedRuntime
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.kubelet import Kubelet
from tests.cluster.harness.waiting import wait_until
from tests.cluster.operator_process import Jobs, OperatorProcess, build_finetunejob, install

CLIENTS = 8


def create_namespace(control_plane: ControlPlane, name: str) -> None:
    control_plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
    wait_until(lambda: control_plane.api.items(accounts), "a default ServiceAccount")


def time_until_done(create: Callable[[int], Any], count_done: Callable[[], int], jobs: int) -> float:
    """Seconds from the first request until all are done."""
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(create, range(jobs)))
    wait_until(lambda: count_done() == jobs, f"{jobs} done", seconds=600, describe=lambda: f"{count_done()} are")
    return time.monotonic() - began


def run_bare_jobs(control_plane: ControlPlane, jobs: int) -> float:
    """Creates the Jobs that the operator would have made, with their volumes dropped: there is nothing to mount."""
    create_namespace(control_plane, "bare")
    job, layout, settings = parse_finetunejob(build_finetunejob("bare")), ContainerLayout(), Settings()
    template = build_manifests(job, decide_plan(job, settings, layout), settings, layout)[-1]
    pod = template["spec"]["template"]["spec"]
    pod["volumes"], pod["containers"][0]["volumeMounts"] = [], []
    path = "/apis/batch/v1/namespaces/bare/jobs"

    def create(number: int) -> None:
        manifest = copy.deepcopy(template)
        manifest["metadata"] = {"name": f"job-{number}"}
        control_plane.api.post(path, manifest)

    return time_until_done(
        create, lambda: sum("completionTime" in j.get("status", {}) for j in control_plane.api.items(path)), jobs
    )


def run_finetunejobs(control_plane: ControlPlane, jobs: int) -> float:
    """Creates the FineTuneJobs and waits for their statuses."""
    kubeconfig = install(control_plane)
    create_namespace(control_plane, "finetune")
    ours = Jobs(control_plane, "finetune")
    with tempfile.TemporaryDirectory() as folder, OperatorProcess(kubeconfig, "finetune", Path(folder)) as operator:
        wait_until(lambda: "finetune_operator_leader 1.0" in operator.read_health("/metrics"), "a leader")
        return time_until_done(
            lambda number: ours.create(f"job-{number}"),
            lambda: sum("completionTime" in (job.get("status") or {}) for job in ours.all()),
            jobs,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    jobs = parser.parse_args().jobs
    with ControlPlane() as control_plane, Kubelet(control_plane, ScriptedRuntime(lambda pod: Life(0.1))):
        bare = run_bare_jobs(control_plane, jobs)
        ours = run_finetunejobs(control_plane, jobs)
    print(f"{jobs} bare Jobs complete:    {bare:6.1f} s  {jobs / bare:6.1f}/s")
    print(f"{jobs} FineTuneJobs complete: {ours:6.1f} s  {jobs / ours:6.1f}/s")
    print(f"ratio: {ours / bare:.2f} x the time of the bare Jobs, children, status and Events included")


if __name__ == "__main__":
    main()
