"""Jobs of several pods, on spot nodes, and by Kubeflow's kind, on the real API server with scripted pods."""

import pytest

from finetune_api import names
from finetune_api.progress import Termination
from tests.chart.programs import find_pod_group_crds
from tests.cluster.harness.containers import Life
from tests.cluster.harness.definitions import install_definition
from tests.cluster.harness.waiting import wait_until
from tests.cluster.operator_process import FINETUNEJOBS
from tests.node.harness.training_operator import find_pytorchjob_crd

SPOT = {"enabled": True, "provider": "gke"}
PYTORCHJOBS = f"/apis/{names.PYTORCHJOB_API_VERSION}"


def index(pod) -> int:
    return int(pod["metadata"]["labels"][names.LABEL_INDEX])


def words(reason: str, message: str) -> str:
    return Termination(reason=reason, message=message, checkpoint_step=5).model_dump_json(by_alias=True)


def test_a_preempted_job_falls_back_to_on_demand_nodes(control_plane, jobs, operator, kubelet):
    ends = iter([75, 0])
    kubelet(mode="scripted", script=lambda pod: Life(0.5, next(ends), words("Preempted", "Saved at step 5.")))
    for node in control_plane.api.items("/api/v1/nodes"):
        labels = {"labels": {"cloud.google.com/gke-spot": "true"}}
        control_plane.api.patch(f"/api/v1/nodes/{node['metadata']['name']}", {"metadata": labels})
    jobs.create("market", spot=SPOT | {"fallback": {"afterPreemptions": 1}})
    status = jobs.wait_for("market", phase="Succeeded", seconds=90)
    assert (status["market"], status["preemptions"], status["restarts"]) == ("on-demand", 1, 0)
    (workload,) = jobs.workloads()
    assert workload["metadata"]["annotations"][names.ANNOTATION_MARKET] == "on-demand"
    assert "nodeSelector" not in workload["spec"]["template"]["spec"]
    events = jobs.api.items(f"/api/v1/namespaces/{jobs.namespace}/events")
    told = [each["message"] for each in events if each["reason"] == "MarketChanged"]
    assert told == ["Goes on with on-demand nodes."]


def test_one_failed_pod_of_two_is_counted_once_and_both_start_again(jobs, operator, kubelet):
    lives = {0: iter([Life(0.8, 76, words("PeerLost", "lost")), Life(0.5)]), 1: iter([Life(0.3, 1), Life(0.5)])}
    kubelet(mode="scripted", script=lambda pod: next(lives[index(pod)]))
    jobs.create("gang", parallelism={"nodes": 2}, runPolicy={"backoffLimit": 1})
    status = jobs.wait_for("gang", phase="Succeeded", seconds=120)
    assert (status["restarts"], status["preemptions"]) == (1, 0)
    assert status["plan"]["nodes"] == 2
    (service,) = jobs.children("services")
    assert service["spec"]["clusterIP"] == "None"


def test_a_hopeless_pod_ends_the_others(jobs, operator, kubelet):
    message = words("InvalidPlanOrData", "dataset.source: no rows")
    lives = {0: Life(600, exit_code_on_sigterm=75), 1: Life(0.5, 10, message)}
    kubelet(mode="scripted", script=lambda pod: lives[index(pod)])
    jobs.create("hopeless", parallelism={"nodes": 2})
    status = jobs.wait_for("hopeless", phase="Failed", seconds=60)
    assert status["message"] == "dataset.source: no rows"
    wait_until(
        lambda: all(pod["status"]["phase"] in ("Failed", "Succeeded") for pod in jobs.children("pods")),
        "no pod holds its GPUs",
    )


@pytest.mark.parametrize(
    ("gang", "api"),
    [
        ({"scheduler": "volcano", "queue": "research"}, "/apis/scheduling.volcano.sh/v1beta1"),
        ({"scheduler": "scheduler-plugins", "timeout": "5m"}, "/apis/scheduling.x-k8s.io/v1alpha1"),
    ],
    ids=["volcano", "scheduler-plugins"],
)
def test_a_gang_gets_its_pod_group(control_plane, jobs, operator, gang, api):
    """Of the schedulers only the definitions are here; the pods wait for them."""
    jobs.create("gang", parallelism={"nodes": 2}, resources={"gpu": {"count": 0}, "gang": gang})

    def told() -> str:
        return jobs.get("gang").get("status", {}).get("message", "")

    wait_until(lambda: "drop resources.gang" in told(), "the mend in the status", describe=told)
    install_definition(control_plane, find_pod_group_crds()[gang["scheduler"]])
    jobs.patch_spec("gang", runPolicy={"ttlAfterFinished": "1h"})  # sooner than it is looked at again
    jobs.wait_for("gang", workload__kind="Job", seconds=90)
    (group,) = jobs.children("podgroups", api)
    assert group["spec"]["minMember"] == 2
    assert group["spec"]["minResources"]["cpu"] == "4"
    pods = wait_until(lambda: len(found := jobs.children("pods")) == 2 and found, "both pods")
    marks = [pod["metadata"]["labels"] | pod["metadata"].get("annotations", {}) for pod in pods]
    assert all("gang" in (m.get("scheduling.k8s.io/group-name"), m.get("scheduling.x-k8s.io/pod-group")) for m in marks)


def test_pytorchjobs_are_made_where_they_are_served(control_plane, jobs, operator):
    """Nobody runs them here: the real controller does on the node."""
    jobs.create("kubeflow", parallelism={"nodes": 2, "backend": "PyTorchJob"}, spot=SPOT)

    def told() -> str:
        return jobs.get("kubeflow").get("status", {}).get("message", "")

    wait_until(lambda: "install Kubeflow's training operator" in told(), "the mend in the status", describe=told)
    install_definition(control_plane, find_pytorchjob_crd())
    jobs.patch_spec("kubeflow", runPolicy={"ttlAfterFinished": "1h"})  # sooner than it is looked at again
    status = jobs.wait_for("kubeflow", workload__kind="PyTorchJob", market="spot", seconds=90)

    def fetch():
        found = jobs.children("pytorchjobs", PYTORCHJOBS)
        return found[0] if found else None

    first = fetch()
    replicas = first["spec"]["pytorchReplicaSpecs"]
    assert (set(replicas), replicas["Worker"]["replicas"]) == ({"Worker"}, 2)
    jobs.patch_spec("kubeflow", runPolicy={"suspend": True})
    wait_until(lambda: fetch()["spec"]["runPolicy"]["suspend"], "the PyTorchJob suspended")
    jobs.patch_spec("kubeflow", runPolicy={"suspend": False})
    # As earlier passes would have decided.
    path = f"{FINETUNEJOBS}/namespaces/{jobs.namespace}/{names.PLURAL}/kubeflow/status"
    control_plane.api.patch(path, {"status": {"market": "on-demand"}})
    wait_until(
        lambda: (now := fetch()) is not None and now["metadata"]["uid"] != first["metadata"]["uid"],
        "a PyTorchJob for the other market",
        60,
    )
    template = fetch()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    assert "nodeSelector" not in template
    status = jobs.wait_for("kubeflow", market="on-demand")
    assert status["restarts"] == 0
