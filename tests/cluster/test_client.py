"""The Cluster and the watches against the real API server: what each request does there, and what is never sent."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes.config.kube_config
import pytest
from kubernetes.client import ApiClient, Configuration

from finetune_api import names
from finetune_operator.cluster import client as client_module
from finetune_operator.cluster.client import Cluster
from finetune_operator.cluster.errors import Conflict, Forbidden, Invalid, NotLeader, Unavailable
from finetune_operator.cluster.transport import Transport
from finetune_operator.queue import Key
from finetune_operator.telemetry import Telemetry
from finetune_operator.watch import Watches, WatchFreshness, build_registry
from tests.cluster.harness.api import APPLY_PATCH
from tests.cluster.harness.audit import service_account_user
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.cluster.runtime import ACCOUNT, FINETUNEJOBS, connect, create_account, create_finetunejob, install_crd


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, namespace: str) -> Path:
    install_crd(control_plane)
    return create_account(control_plane, namespace)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def cluster(kubeconfig: Path, telemetry: Telemetry) -> Cluster:
    return Cluster(connect(kubeconfig, telemetry, "finetune-operator/1.2.3"), seconds_to_write=lambda: 10.0)


def config_map(namespace: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": "plan"}, "data": data}


def test_apply_is_idempotent_and_drops_what_it_no_longer_says(
    control_plane: ControlPlane, namespace: str, cluster: Cluster
) -> None:
    created = cluster.apply(config_map(namespace, a="1", b="2"))
    assert cluster.apply(config_map(namespace, a="1", b="2")) == created
    path = f"/api/v1/namespaces/{namespace}/configmaps/plan"
    theirs = config_map(namespace, a="theirs", c="3")
    control_plane.api.patch(path, theirs, APPLY_PATCH, fieldManager="somebody", force="true")
    applied = cluster.apply(config_map(namespace, a="1"))
    assert applied["data"] == {"a": "1", "c": "3"}
    assert {entry["manager"] for entry in applied["metadata"]["managedFields"]} == {names.FIELD_MANAGER, "somebody"}
    assert cluster.fetch("ConfigMap", namespace, "plan") == applied


def test_status_is_replaced_whole_by_one_write_and_nothing_else_changes(
    control_plane: ControlPlane, namespace: str, cluster: Cluster
) -> None:
    created = create_finetunejob(control_plane, namespace, "job")
    version = created["metadata"]["resourceVersion"]
    first = cluster.replace_status(namespace, "job", version, {"phase": "Running", "message": "step 1"})
    assert first["status"] == {"phase": "Running", "message": "step 1"}
    mark = control_plane.audit.mark()
    second = cluster.replace_status(namespace, "job", first["metadata"]["resourceVersion"], {"phase": "Succeeded"})
    writes = control_plane.audit.writes(mark, user=service_account_user(namespace, ACCOUNT))
    assert [(write.verb, write.subresource, write.code) for write in writes] == [("update", "status", 200)]
    fetched = cluster.fetch_finetunejob(namespace, "job")
    assert fetched == second
    assert fetched["status"] == {"phase": "Succeeded"}
    assert fetched["spec"] == created["spec"]
    assert fetched["metadata"]["generation"] == 1
    with pytest.raises(Conflict):
        cluster.replace_status(namespace, "job", version, {"phase": "Failed"})


def test_a_merge_patch_with_a_version_that_passed_conflicts(namespace: str, cluster: Cluster) -> None:
    version = cluster.apply(config_map(namespace, a="1"))["metadata"]["resourceVersion"]
    patch = {"metadata": {"resourceVersion": version}, "data": {"a": None, "b": "2"}}
    assert cluster.merge_patch("ConfigMap", namespace, "plan", patch)["data"] == {"b": "2"}
    with pytest.raises(Conflict):
        cluster.merge_patch("ConfigMap", namespace, "plan", patch)


def test_delete_takes_only_the_object_with_the_uid(namespace: str, cluster: Cluster) -> None:
    uid = cluster.apply(config_map(namespace, a="1"))["metadata"]["uid"]
    with pytest.raises(Conflict):
        cluster.delete("ConfigMap", namespace, "plan", "00000000-0000-0000-0000-000000000000")
    cluster.delete("ConfigMap", namespace, "plan", uid)
    assert cluster.fetch("ConfigMap", namespace, "plan") is None
    cluster.delete("ConfigMap", namespace, "plan", uid)


def test_an_event_is_posted_once_even_by_a_process_that_starts_anew(
    control_plane: ControlPlane, namespace: str, cluster: Cluster, kubeconfig: Path
) -> None:
    job = create_finetunejob(control_plane, namespace, "job")
    mark = control_plane.audit.mark()
    cluster.create_event(job, "Warning", "ImagePullFailed", "no such image")
    cluster.create_event(job, "Warning", "ImagePullFailed", "no such image")
    restarted = Cluster(connect(kubeconfig), seconds_to_write=lambda: 10.0)
    restarted.create_event(job, "Warning", "ImagePullFailed", "no such image")
    restarted.create_event(job, "Normal", "Succeeded", "done")
    writes = control_plane.audit.writes(mark, resource="events", namespace=namespace)
    assert [write.code for write in writes] == [201, 409, 201]
    described = control_plane.kubectl("describe", "finetunejob", "job", namespace=namespace)
    assert "Warning  ImagePullFailed" in described
    assert "no such image" in described


def test_without_the_lease_nothing_is_written(control_plane: ControlPlane, namespace: str, kubeconfig: Path) -> None:
    follower = Cluster(connect(kubeconfig), seconds_to_write=lambda: 0.0)
    job = create_finetunejob(control_plane, namespace, "job")
    mark = control_plane.audit.mark()
    for write in [
        lambda: follower.apply(config_map(namespace)),
        lambda: follower.merge_patch("ConfigMap", namespace, "plan", {}),
        lambda: follower.replace_status(namespace, "job", job["metadata"]["resourceVersion"], {}),
        lambda: follower.delete("Job", namespace, "job", "uid"),
        lambda: follower.create_event(job, "Normal", "Succeeded", "done"),
    ]:
        with pytest.raises(NotLeader):
            write()
    assert follower.fetch_finetunejob(namespace, "job") is not None
    assert control_plane.audit.writes(mark, user=service_account_user(namespace, ACCOUNT)) == []


def test_answers_have_types(namespace: str, cluster: Cluster) -> None:
    assert cluster.fetch("Job", namespace, "none") is None
    assert cluster.list_pods(namespace, "none") == []
    with pytest.raises(Forbidden):
        cluster.delete("Pod", namespace, "any", "uid")
    with pytest.raises(Invalid) as refused:
        cluster.apply({**config_map(namespace, **{"not a key": "x"})})
    assert "not a key" in str(refused.value)


def test_no_answer_is_given_up_in_time() -> None:
    """A server that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        configuration = Configuration(host=f"http://127.0.0.1:{server.getsockname()[1]}", retries=False)
        telemetry = Telemetry()
        silent = Cluster(Transport(ApiClient(configuration), telemetry, "tests"), seconds_to_write=lambda: 0.3)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            silent.apply(config_map("default"))
        assert time.monotonic() - began < 2
    labels = {"verb": "patch", "resource": "configmaps", "code": "none"}
    assert telemetry.registry.get_sample_value("finetune_operator_api_requests_total", labels) == 1


def test_lists_come_in_pages_of_metadata(
    control_plane: ControlPlane, namespace: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.list_finetunejob_metadata(namespace) == []
    for name in "abcde":
        create_finetunejob(control_plane, namespace, name)
    monkeypatch.setattr(client_module, "PAGE_SIZE", 2)
    mark = control_plane.audit.mark()
    listed = cluster.list_finetunejob_metadata(namespace)
    assert [metadata["name"] for metadata in listed] == list("abcde")
    assert all(metadata["resourceVersion"] for metadata in listed)
    assert len(control_plane.audit.requests(mark, verbs={"list"}, resource=names.PLURAL, namespace=namespace)) == 3


def test_requests_are_counted_and_signed(
    control_plane: ControlPlane, namespace: str, cluster: Cluster, telemetry: Telemetry
) -> None:
    mark = control_plane.audit.mark()
    cluster.fetch("Job", namespace, "none")
    cluster.apply(config_map(namespace))
    user = service_account_user(namespace, ACCOUNT)
    assert [(request.verb, request.user_agent) for request in control_plane.audit.requests(mark, user=user)] == [
        ("get", "finetune-operator/1.2.3"),
        ("patch", "finetune-operator/1.2.3"),
    ]
    for verb, resource, code in [("get", "jobs", "404"), ("patch", "configmaps", "201")]:
        labels = {"verb": verb, "resource": resource, "code": code}
        assert telemetry.registry.get_sample_value("finetune_operator_api_requests_total", labels) == 1


@pytest.fixture
def delivered(kubeconfig: Path, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Key]]:
    """Keys that kopf's watches of this namespace put on the queue."""
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    keys: list[Key] = []
    ended: list[bool] = []
    watches = Watches(build_registry(keys.append, WatchFreshness()), [namespace], lambda: ended.append(True))
    watches.start()
    yield keys
    assert not ended
    watches.stop()
    assert ended


def test_watches_deliver_keys_and_write_nothing(
    control_plane: ControlPlane, namespace: str, kubeconfig: Path, request: pytest.FixtureRequest
) -> None:
    api, audit, user = control_plane.api, control_plane.audit, service_account_user(namespace, ACCOUNT)
    create_finetunejob(control_plane, namespace, "before")
    mark = audit.mark()
    keys: list[Key] = request.getfixturevalue("delivered")

    def expect(name: str) -> None:
        wait_until(lambda: (namespace, name) in keys, f"the key of {name}", describe=lambda: keys)
        keys.clear()

    expect("before")
    wait_until(
        lambda: len(audit.requests(mark, user=user, verbs={"watch"})) == 3, "three watches: FineTuneJobs, jobs, pods"
    )
    create_finetunejob(control_plane, namespace, "new")
    expect("new")
    path = f"{FINETUNEJOBS}/namespaces/{namespace}/{names.PLURAL}/new"
    api.patch(path, {"metadata": {"annotations": {"changed": "yes"}}})
    expect("new")

    pod = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}
    for name, labels in [("unlabelled", {}), ("labelled", {names.LABEL_JOB_NAME: "of-job-or-pod"})]:
        metadata = {"name": name, "labels": labels}
        api.post(f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": pod})
        template = {"metadata": {"labels": labels}, "spec": pod}
        api.post(f"/apis/batch/v1/namespaces/{namespace}/jobs", {"metadata": metadata, "spec": {"template": template}})
        if labels:
            expect("of-job-or-pod")
        else:
            time.sleep(0.5)
            assert keys == []
    api.delete(f"/api/v1/namespaces/{namespace}/pods/labelled", gracePeriodSeconds=0)
    expect("of-job-or-pod")
    api.delete(path)
    expect("new")
    assert audit.writes(mark, user=user) == []
    assert all("finalizers" not in job["metadata"] for job in api.items(path.rsplit("/", 1)[0]))


class StallingProxy(contextlib.ExitStack):
    """Passes TCP on to the API server, until `open` is cleared: then connections stay up and silent."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self._target = port
        self._server = self.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.callback(self._server.shutdown, socket.SHUT_RDWR)
        self.callback(self.open.set)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in [(near, far), (far, near)]:
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65536):
                self.open.wait()
                sink.sendall(data)


def test_a_silent_watch_is_noticed_and_told_when_it_speaks_again(
    control_plane: ControlPlane, namespace: str, kubeconfig: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = urlsplit(control_plane.server)
    freshness = WatchFreshness()
    keys: list[Key] = []

    def list_now() -> None:
        freshness.begin_list()
        listed = cluster.list_finetunejob_metadata(namespace)
        freshness.listed(((namespace, each["name"]), each["resourceVersion"]) for each in listed)

    with StallingProxy(server.port) as proxy:
        through = kubeconfig.with_suffix(".through-proxy")
        through.write_text(kubeconfig.read_text().replace(server.netloc, f"127.0.0.1:{proxy.port}"))
        monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(through))
        watches = Watches(build_registry(keys.append, freshness), [namespace], lambda: None)
        watches.start()
        create_finetunejob(control_plane, namespace, "job")
        list_now()
        wait_until(lambda: freshness.synced, "the watch's first delivery")

        proxy.open.clear()
        create_finetunejob(control_plane, namespace, "unseen")
        list_now()
        time.sleep(1)
        assert not freshness.synced
        assert freshness.stale_seconds >= 1
        assert (namespace, "unseen") not in keys

        proxy.open.set()
        wait_until(lambda: freshness.synced, "the watch's late delivery")
        assert freshness.stale_seconds == 0
        assert (namespace, "unseen") in keys
        watches.stop()
