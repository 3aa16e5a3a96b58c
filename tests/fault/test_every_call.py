"""A fault at each request of a job's life, in turn, before and after it took effect: the end must be the same."""

import re

import pytest

from finetune_operator.cluster.client import Cluster
from finetune_operator.cluster.errors import ApiError, Unavailable
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.telemetry import Telemetry
from tests.cluster.harness.containers import Life
from tests.cluster.harness.waiting import wait_until
from tests.cluster.runtime import connect

CALLS = 120  # more than a life has; the test sees to it


class FaultyTransport:
    """The real transport, with one request lost on its way there (``before``) or its answer on the way back."""

    def __init__(self, transport, fault_at: int, before: bool) -> None:
        self.transport, self.fault_at, self.before, self.calls = transport, fault_at, before, 0

    def request(self, verb, resource, path, *arguments, **options):
        self.calls += 1
        fault = self.calls == self.fault_at
        if fault and self.before:
            raise Unavailable(0, "Fault", "lost on its way there")
        try:
            return self.transport.request(verb, resource, path, *arguments, **options)
        finally:
            if fault:  # whatever the answer was
                raise Unavailable(0, "Fault", "the answer was lost")


def live(jobs, kubeconfig, name: str, fault_at: int, before: bool) -> int:
    """Lives a whole life, a fresh reconciler after the fault as after a crash. Returns the number of requests."""
    faulty = FaultyTransport(connect(kubeconfig), fault_at, before)
    jobs.create(name, runPolicy={"backoffLimit": 1})
    reconciler = Reconciler(Cluster(faulty, lambda: 60.0), Settings(), Telemetry())

    def one_pass() -> bool:
        nonlocal reconciler
        try:
            reconciler.reconcile((jobs.namespace, name))
        except ApiError:
            reconciler = Reconciler(Cluster(faulty, lambda: 60.0), Settings(), Telemetry())
        return (jobs.get(name).get("status") or {}).get("phase") == "Succeeded"

    wait_until(one_pass, f"{name} Succeeded", describe=lambda: str(jobs.get(name).get("status")))
    return faulty.calls


def without_identity(value):
    """Statuses of two jobs are the same but for names, uids and times."""
    return re.sub(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ|[0-9a-f]{8}-[0-9a-f-]{27}|life-[0-9]+-(True|False)", "…", str(value)
    )


@pytest.mark.parametrize("before", [True, False], ids=["request-lost", "answer-lost"])
def test_a_fault_at_each_call(control_plane, jobs, kubeconfig, kubelet, before):
    kubelet(mode="scripted", script=lambda pod: Life(0.05))
    live(jobs, kubeconfig, f"life-0-{before}".lower(), 0, before)
    expected = jobs.get(f"life-0-{before}".lower())["status"]
    fault_at = 0
    while fault_at < CALLS:
        fault_at += 1
        name = f"life-{fault_at}-{before}".lower()
        calls = live(jobs, kubeconfig, name, fault_at, before)
        status = jobs.get(name)["status"]
        assert without_identity(status).replace(name, "…") == without_identity(expected).replace(
            f"life-0-{before}".lower(), "…"
        )
        workloads = [w for w in jobs.workloads() if w["metadata"]["name"] == name]
        assert len(workloads) == 1
        assert workloads[0]["metadata"]["uid"] == status["workload"]["uid"]
        events = [e for e in jobs.api.items(f"/api/v1/namespaces/{jobs.namespace}/events") if e["involvedObject"]["name"] == name and e["involvedObject"]["kind"] == "FineTuneJob"]  # fmt: skip
        assert sorted(event["reason"] for event in events) == ["Succeeded", "WorkloadCreated"]
        if calls < fault_at:
            print(f"a life has {calls} calls")
            return
    pytest.fail(f"a life has more than {CALLS} calls")
