"""What the operator counts, on jobs that really end."""

import pytest

from finetune_api.names import Phase
from finetune_operator.cluster.client import Cluster
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.telemetry import PREFIX, Telemetry
from tests.cluster.harness.containers import Life
from tests.cluster.harness.waiting import wait_until
from tests.cluster.runtime import connect


@pytest.mark.parametrize(("code", "end"), [(0, Phase.SUCCEEDED), (10, Phase.FAILED)])
def test_an_end_is_counted_once_whoever_leads(jobs, kubeconfig, kubelet, code, end):
    kubelet(mode="scripted", script=lambda pod: Life(0.05, code))
    jobs.create("bot")
    leaders = [Telemetry(), Telemetry()]
    reconcilers = [Reconciler(Cluster(connect(kubeconfig), lambda: 60.0), Settings(), each) for each in leaders]

    def pass_of_each():
        for reconciler in reconcilers:
            reconciler.reconcile((jobs.namespace, "bot"))
        return (jobs.get("bot").get("status") or {}).get("phase") == end

    wait_until(pass_of_each, end, describe=lambda: str(jobs.get("bot").get("status")))
    pass_of_each()
    name = f"{PREFIX}_jobs_finished_total"
    counts = {
        phase: sum(each.registry.get_sample_value(name, {"phase": phase}) for each in leaders)
        for phase in (Phase.SUCCEEDED, Phase.FAILED)
    }
    assert counts == {Phase.SUCCEEDED: 0, Phase.FAILED: 0} | {end: 1}
