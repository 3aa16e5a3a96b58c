"""The chart on the real API server, by Helm: install, upgrade, uninstall, and what of it stays."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from kubernetes import config
from kubernetes.client import ApiException

from finetune_api import names
from tests.chart.chart import CHART, RELEASE, VALUES, render
from tests.chart.release import RESTRICTED, Release, write_previous_chart
from tests.cluster.harness.audit import service_account_user
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.definitions import wait_for_definition
from tests.cluster.harness.waiting import wait_until
from tests.cluster.operator_process import Jobs, OperatorProcess

EVERYTHING = next(path for path in VALUES if path.stem == "everything")
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{names.PLURAL}.{names.GROUP}"


@pytest.fixture
def helm(cluster: ControlPlane, namespace: str) -> Iterator[Release]:
    """A release is uninstalled after the test, and what it leaves removed."""
    cluster.api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": RESTRICTED}})
    helm = Release(cluster, namespace)
    yield helm
    helm.run("uninstall", "--ignore-not-found")
    try:
        cluster.api.delete(CRD)
    except ApiException as error:
        if error.status != 404:
            raise
    wait_until(lambda: not exists(cluster, CRD), "the CustomResourceDefinition is gone", 60)


def exists(cluster: ControlPlane, path: str) -> bool:
    try:
        return bool(cluster.api.get(path))
    except ApiException as error:
        if error.status != 404:
            raise
        return False


def wait_for_crd(cluster: ControlPlane) -> None:
    wait_for_definition(cluster, f"{names.PLURAL}.{names.GROUP}")


def test_everything_is_installed_and_the_pods_are_admitted_as_restricted(helm: Release, cluster: ControlPlane):
    notes = helm.install("--values", EVERYTHING)
    assert "kubectl --namespace default apply --filename -" in notes
    assert "Monitoring" not in notes
    installed = helm.installed()
    kinds = {kind for kind, _ in installed}
    assert len(installed) == len(render("--values", EVERYTHING, "--skip-tests"))
    assert {
        "servicemonitor.monitoring.coreos.com",
        "prometheusrule.monitoring.coreos.com",
        "networkpolicy.networking.k8s.io",
    } <= kinds
    # No node is here: they wait for one. Pod Security would have kept the ReplicaSet from making them.
    pods = f"/api/v1/namespaces/{helm.namespace}/pods"
    wait_until(lambda: len(cluster.api.items(pods)) == 3, "3 pods of the operator")
    assert {pod["status"]["phase"] for pod in cluster.api.items(pods)} == {"Pending"}


def test_a_pod_that_violates_the_standard_would_have_been_refused(helm: Release, cluster: ControlPlane):
    helm.install("--set", "podSecurityContext.runAsNonRoot=false")
    events = f"/api/v1/namespaces/{helm.namespace}/events"
    wait_until(
        lambda: [each for each in cluster.api.items(events) if "violates PodSecurity" in each["message"]],
        "the event that says so",
    )
    assert cluster.api.items(f"/api/v1/namespaces/{helm.namespace}/pods") == []


def test_upgrade_and_uninstall_keep_the_jobs(helm: Release, cluster: ControlPlane):
    helm.install()
    wait_for_crd(cluster)
    jobs = Jobs(cluster, helm.namespace)
    before = jobs.create("keeps")
    definition = cluster.api.get(CRD)["metadata"]["uid"]

    helm.upgrade("--set", "settings.workers=4", "--set", "replicas=3")
    assert jobs.get("keeps")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    path = f"/apis/apps/v1/namespaces/{helm.namespace}/deployments/{RELEASE}"
    assert cluster.api.get(path)["spec"]["replicas"] == 3

    print(helm.run("uninstall"))
    wait_until(lambda: not exists(cluster, path), "the Deployment is gone")
    assert jobs.get("keeps")["metadata"]["uid"] == before["metadata"]["uid"]
    assert cluster.api.get(CRD)["metadata"]["uid"] == definition

    helm.install()
    assert cluster.api.get(CRD)["metadata"]["uid"] == definition, "taken over, not made anew"
    assert jobs.get("keeps")["metadata"]["uid"] == before["metadata"]["uid"]


def test_without_keep_the_definition_goes_with_the_release(helm: Release, cluster: ControlPlane):
    helm.install("--set", "crds.keep=false")
    wait_for_crd(cluster)
    helm.run("uninstall")
    wait_until(lambda: not exists(cluster, CRD), "the CustomResourceDefinition is gone")


def test_an_upgrade_from_an_older_chart_brings_the_definition_up_to_date(
    helm: Release, cluster: ControlPlane, tmp_path: Path
):
    helm.install(chart=write_previous_chart(tmp_path))
    wait_for_crd(cluster)
    assert cluster.api.get(CRD)["spec"]["names"]["categories"] == ["old"]
    helm.upgrade()
    assert cluster.api.get(CRD)["spec"]["names"]["categories"] == [names.CATEGORY]


ROLES = {
    "view": {"list"},
    "edit": {"list", "create", "patch"},
    "admin": {"list", "create", "patch", "deletecollection"},
}


def test_users_get_their_rights_by_the_clusters_own_roles(helm: Release, cluster: ControlPlane):
    helm.install()
    for role in ROLES:  # a user of the same name has it
        arguments = (role, f"--clusterrole={role}", f"--user={role}")
        cluster.kubectl("create", "rolebinding", *arguments, namespace=helm.namespace)

    def allowed() -> dict[str, set[str]]:
        return {role: {verb for verb in ROLES["admin"] if may(cluster, helm.namespace, role, verb)} for role in ROLES}

    # The controller manager fills the aggregated roles.
    wait_until(lambda: allowed() == ROLES, f"rights are {ROLES}", describe=allowed)


def may(cluster: ControlPlane, namespace: str, user: str, verb: str) -> bool:
    attributes = {"verb": verb, "group": names.GROUP, "resource": names.PLURAL, "namespace": namespace}
    review = {"spec": {"user": user, "resourceAttributes": attributes}}
    answer = cluster.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


@pytest.fixture
def team(cluster: ControlPlane, namespace: str) -> Iterator[str]:
    """A second namespace."""
    name = f"{namespace}-team"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.api.delete(f"/api/v1/namespaces/{name}")


def test_roles_of_one_namespace_are_enough_for_the_operator(
    helm: Release, cluster: ControlPlane, team: str, tmp_path: Path, monkeypatch
):
    """The operator as a process with the release's ServiceAccount, since no node runs its pod here; then `helm test`'s script."""
    helm.install("--set", f"watchNamespaces={{{team}}}")
    wait_for_crd(cluster)
    assert not exists(cluster, f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{RELEASE}")
    kubeconfig = cluster.service_account_kubeconfig(helm.namespace, RELEASE)
    jobs = Jobs(cluster, team)
    begin = cluster.audit.mark()
    with OperatorProcess(kubeconfig, team, tmp_path, leaseNamespace=helm.namespace, leaseName=RELEASE) as operator:
        operator.read_health("/readyz")
        jobs.create("job")
        wait_until(jobs.workloads, "the operator makes the Job")
        wait_until(lambda: jobs.get("job").get("status"), "and tells so in the status")
        requests = cluster.audit.requests(begin, user=service_account_user(helm.namespace, RELEASE))
        assert {"finetunejobs", "jobs", "configmaps", "events", "leases"} <= {each.resource for each in requests}
        assert [str(each) for each in requests if each.code == 403] == []
        port = operator.log.read_text().split("health at port ")[1].split()[0]

        def check(*namespaces: str) -> None:
            monkeypatch.setattr(sys, "argv", ["-c", f"http://127.0.0.1:{port}/healthz", *namespaces])
            runpy.run_path(str(CHART / "files" / "check_installation.py"))

        # Only a pod has the credentials of a pod.
        monkeypatch.setattr(config, "load_incluster_config", lambda: config.load_kube_config(str(kubeconfig)))
        check(team)
        with pytest.raises(Exception, match="Forbidden"):
            check(helm.namespace)
        with pytest.raises(Exception, match="Forbidden"):
            check()
        assert urlopen(f"http://127.0.0.1:{port}/healthz").status == 200
