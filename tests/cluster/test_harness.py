"""The harness itself: that its control plane and kubelets behave as Kubernetes does, where other tests rely on it.

The Job tests also hold the facts that the operator's handling of exit code 75 (preempted) stands on.
"""

import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from tests.cluster.harness.api import Api, Object
from tests.cluster.harness.audit import service_account_user
from tests.cluster.harness.binaries import PROGRAMS, VERSION, MissingProgramError, ensure_binaries
from tests.cluster.harness.containers import Life
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.fixtures import KubeletFactory
from tests.cluster.harness.waiting import wait_until

PREEMPTED = 75
POLICY = {
    "rules": [
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [10]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
}


class Cluster:
    """One namespace of the control plane, in the words of these tests."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.api, self.namespace = control_plane.api, namespace
        self.core = f"/api/v1/namespaces/{namespace}"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"

    def create_job(
        self, script: str = "", pod: Object | None = None, container: Object | None = None, **spec: Any
    ) -> None:
        """A Job named job whose one container runs `script` in Python."""
        command = ["python", "-c", textwrap.dedent(script)]
        containers = [{"name": "main", "image": "none", "command": command} | (container or {})]
        pod_spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": containers}
        template = {"spec": pod_spec | (pod or {})}
        self.api.post(
            self.jobs, {"metadata": {"name": "job"}, "spec": {"backoffLimit": 0, "template": template} | spec}
        )

    def job_status(self) -> Object:
        return dict(self.api.get(f"{self.jobs}/job")["status"])

    def pods(self) -> list[Object]:
        return self.api.items(f"{self.core}/pods", labelSelector="job-name=job")

    def wait_for_condition(self, kind: str) -> Object:
        """The Job's status once the condition is true."""

        def has_condition() -> Object | None:
            status = self.job_status()
            found = [each for each in status.get("conditions", ()) if each["type"] == kind and each["status"] == "True"]
            return status | {"reason": found[0].get("reason")} if found else None

        return wait_until(has_condition, f"job {kind}", describe=self.describe)

    def wait_for_pod(self, phase: str) -> Object:
        def find() -> Object | None:
            return next((pod for pod in self.pods() if pod["status"]["phase"] == phase), None)

        return wait_until(find, f"a pod {phase}", describe=self.describe)

    def describe(self) -> object:
        return self.job_status(), [pod["status"] for pod in self.pods()]


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str) -> Cluster:
    return Cluster(control_plane, namespace)


def exit_codes(*codes: int) -> dict[str, dict[str, Any]]:
    """Pods that end with these codes, one after the other (the last one for ever): kubelet options and a Job's script."""
    script = f"""
        import os, sys
        codes = {codes}
        seen = len(os.listdir("/state"))
        open(f"/state/{{seen}}", "w").close()
        open("/dev/termination-log", "w").write(f"attempt {{seen}}")
        sys.exit(codes[min(seen, len(codes) - 1)])
    """
    remaining = list(codes)

    def life(pod: Object) -> Life:
        return Life(0.1, remaining.pop(0) if len(remaining) > 1 else remaining[0])

    return {"process": {"script": script}, "scripted": {"kubelet": {"script": life}}}


def test_assets_folder_must_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etcd").touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(
        MissingProgramError, match="lacks kube-apiserver, kube-controller-manager, kube-scheduler, kubectl"
    ):
        ensure_binaries()
    for name in PROGRAMS:
        (tmp_path / name).touch()
    assert ensure_binaries() == tmp_path


def test_a_failed_start_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\necho the reason; exit 1")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    control_plane = ControlPlane()
    with pytest.raises(RuntimeError, match="the reason"), control_plane:
        pass
    assert not control_plane.folder.exists()


def test_control_plane_is_ready_within_seconds(control_plane: ControlPlane) -> None:
    assert control_plane.start_seconds < 30
    assert f"Server Version: {VERSION}" in control_plane.kubectl("version")


@pytest.mark.parametrize("mode", ["process", "scripted"])
@pytest.mark.parametrize(
    ("codes", "condition", "reason", "failed"),
    [
        pytest.param((PREEMPTED, 0), "Complete", "CompletionsReached", 0, id="75 is not counted"),
        pytest.param((10,), "Failed", "PodFailurePolicy", 1, id="10 fails the Job at once"),
        pytest.param((1, 0), "Failed", "BackoffLimitExceeded", 1, id="1 is counted"),
    ],
)
def test_pod_failure_policy(
    cluster: Cluster,
    control_plane: ControlPlane,
    kubelet: KubeletFactory,
    mode: str,
    codes: tuple[int, ...],
    condition: str,
    reason: str,
    failed: int,
) -> None:
    options = exit_codes(*codes)[mode]
    kubelet(mode, **options.get("kubelet", {}))
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    cluster.api.post(f"{cluster.core}/persistentvolumeclaims", {"metadata": {"name": "state"}, "spec": claim})
    cluster.create_job(
        options.get("script", ""),
        pod={"volumes": [{"name": "state", "persistentVolumeClaim": {"claimName": "state"}}]},
        container={"volumeMounts": [{"name": "state", "mountPath": "/state"}]},
        podFailurePolicy=POLICY,
    )
    status = cluster.wait_for_condition(condition)
    assert (status["reason"], status.get("failed", 0)) == (reason, failed), cluster.describe()
    if mode == "process":
        messages = {
            state["message"]
            for pod in cluster.pods()
            for state in [pod["status"]["containerStatuses"][0]["state"]["terminated"]]
        }
        assert messages <= {f"attempt {attempt}" for attempt in range(len(codes))} and messages
        attempts = list(control_plane.claim_folder(cluster.namespace, "state").iterdir())
        assert len(attempts) == {"Complete": 2, "Failed": 1}[condition]


@pytest.mark.parametrize("ignored", [False, True], ids=["without a policy", "with 75 ignored"])
@pytest.mark.parametrize("how", ["suspend", "delete", "evict"])
def test_what_a_preempted_pod_costs(cluster: Cluster, kubelet: KubeletFactory, how: str, ignored: bool) -> None:
    """Suspending a Job never counts its pod as failed; a deleted or evicted one counts unless 75 is ignored."""
    kubelet("scripted", script=lambda pod: Life(seconds=600, exit_code_on_sigterm=PREEMPTED))
    cluster.create_job(backoffLimit=3, podFailurePolicy=POLICY if ignored else None)
    pod = cluster.wait_for_pod("Running")["metadata"]["name"]
    wait_until(lambda: cluster.job_status().get("active") == 1, "the Job controller saw its pod")
    if how == "suspend":
        cluster.api.patch(f"{cluster.jobs}/job", {"spec": {"suspend": True}})
    elif how == "delete":
        cluster.api.delete(f"{cluster.core}/pods/{pod}")
    else:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        cluster.api.post(f"{cluster.core}/pods/{pod}/eviction", eviction)
    wait_until(lambda: not cluster.pods(), "the pod is gone")
    # The controller counts in the same pass in which it lets the pod go, and writes `uncounted...` in between.
    time.sleep(1.5)
    assert cluster.job_status().get("failed", 0) == (0 if how == "suspend" or ignored else 1)


def test_sigterm_on_suspend_reaches_the_process(cluster: Cluster, kubelet: KubeletFactory) -> None:
    node = kubelet()
    cluster.create_job(
        """
        import signal, sys, time
        def checkpoint(number, frame):
            print("checkpoint written", flush=True)
            sys.exit(75)
        signal.signal(signal.SIGTERM, checkpoint)
        print("training", flush=True)
        time.sleep(600)
        """
    )
    pod = cluster.wait_for_pod("Running")["metadata"]["name"]
    wait_until(lambda: "training" in node.logs(cluster.namespace, pod), "the process handles SIGTERM")
    with cluster.api.watch(f"{cluster.core}/pods") as events:
        cluster.api.patch(f"{cluster.jobs}/job", {"spec": {"suspend": True}})
        last = next(pod for event, pod in events if event == "DELETED")["status"]
    assert node.logs(cluster.namespace, pod) == "training\ncheckpoint written\n"
    assert (last["phase"], last["containerStatuses"][0]["state"]["terminated"]["exitCode"]) == ("Failed", PREEMPTED)


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(
    cluster: Cluster, kubelet: KubeletFactory
) -> None:
    node = kubelet()
    # Process 1 of a container gets no signal that it has no handler for.
    cluster.create_job(
        "import time; print('up', flush=True); time.sleep(600)", pod={"terminationGracePeriodSeconds": 1}
    )
    pod = cluster.wait_for_pod("Running")["metadata"]["name"]
    wait_until(lambda: "up" in node.logs(cluster.namespace, pod), "the process runs")
    with cluster.api.watch(f"{cluster.core}/pods") as events:
        began = time.monotonic()
        cluster.api.delete(f"{cluster.core}/pods/{pod}")
        last = next(pod for event, pod in events if event == "DELETED")["status"]
    assert last["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    assert 1 <= time.monotonic() - began < 5


def test_mounts_and_environment_are_what_the_spec_says(
    cluster: Cluster, control_plane: ControlPlane, kubelet: KubeletFactory
) -> None:
    node = kubelet(env={"FROM_IMAGE": "1"})
    cluster.api.post(f"{cluster.core}/configmaps", {"metadata": {"name": "plan"}, "data": {"plan.json": "{}"}})
    cluster.api.post(f"{cluster.core}/secrets", {"metadata": {"name": "token"}, "stringData": {"hf": "s3cret"}})
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}, "storageClassName": "any"}
    cluster.api.post(f"{cluster.core}/persistentvolumeclaims", {"metadata": {"name": "output"}, "spec": claim})
    cluster.create_job(
        """
        import json, os, sys
        from pathlib import Path
        def refuses(path):
            try:
                Path(path).write_text("x")
            except OSError as error:
                return error.strerror
        Path("/output/run/model").mkdir(parents=True)
        Path("/output/run/model/weights").write_text("trained")
        Path("/dev/shm/tensor").write_bytes(bytes(1000))
        Path("/tmp/scratch").write_text("x")
        shm = os.statvfs("/dev/shm")
        print(json.dumps({
            "plan": Path("/etc/finetune/plan.json").read_text(),
            "files": os.listdir("/etc/finetune"),
            "secret": Path("/var/run/keys/hf").read_text(),
            "shm": shm.f_blocks * shm.f_frsize,
            "refused": [refuses("/etc/finetune/plan.json"), refuses("/etc/new"), refuses("/var/run/keys/hf")],
            "env": dict(os.environ),
            "args": sys.argv[1:],
            "pid": os.getpid(),
            "cwd": os.getcwd(),
            "prefix": sys.prefix,
        }))
        """,
        pod={
            "volumes": [
                {"name": "plan", "configMap": {"name": "plan"}},
                {"name": "keys", "secret": {"secretName": "token", "items": [{"key": "hf", "path": "hf"}]}},
                {"name": "output", "persistentVolumeClaim": {"claimName": "output"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "tmp", "emptyDir": {}},
            ]
        },
        container={
            "args": ["$(GREETING) $(UNKNOWN) $$(GREETING)"],
            "workingDir": "/workspace/new",
            "securityContext": {"readOnlyRootFilesystem": True},
            "volumeMounts": [
                {"name": "plan", "mountPath": "/etc/finetune", "readOnly": True},
                {"name": "keys", "mountPath": "/var/run/keys", "readOnly": True},
                {"name": "output", "mountPath": "/output/run", "subPath": "run"},
                {"name": "shm", "mountPath": "/dev/shm"},
                {"name": "tmp", "mountPath": "/tmp"},
            ],
            "env": [
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['job-name']"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "hf"}}},
                {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "hf", "optional": True}}},
                {"name": "GREETING", "value": "hello $(NAME)"},
            ],
            "envFrom": [{"configMapRef": {"name": "plan"}, "prefix": "P_"}],
        },
    )
    cluster.wait_for_condition("Complete")
    pod = cluster.pods()[0]
    seen = json.loads(node.logs(cluster.namespace, pod["metadata"]["name"]))
    assert (seen["plan"], seen["files"], seen["secret"]) == ("{}", ["plan.json"], "s3cret")
    assert seen["shm"] == 2**20
    assert seen["refused"] == ["Read-only file system"] * 3
    env = seen["env"]
    assert env["POD_IP"] == pod["status"]["podIP"] != "127.0.0.1"
    assert (env["HF_TOKEN"], env["GREETING"], env["P_plan.json"], env["FROM_IMAGE"]) == (
        "s3cret",
        "hello job",
        "{}",
        "1",
    )
    assert "ABSENT" not in env and "PYTEST_CURRENT_TEST" not in env
    assert seen["args"] == ["hello job $(UNKNOWN) $(GREETING)"]
    assert (seen["pid"], seen["cwd"], seen["prefix"]) == (1, "/workspace/new", sys.prefix)
    assert (control_plane.claim_folder(cluster.namespace, "output") / "run/model/weights").read_text() == "trained"
    assert not Path("/etc/finetune").exists() and not Path("/workspace/new").exists()


def test_a_pod_waits_for_its_configmap(cluster: Cluster, kubelet: KubeletFactory) -> None:
    kubelet()
    plan = {"name": "PLAN", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "plan"}}}
    cluster.create_job("import os; assert os.environ['PLAN'] == 'x'", container={"env": [plan]})

    def waiting() -> object:
        statuses = [status for pod in cluster.pods() for status in pod["status"].get("containerStatuses", ())]
        return any(
            status["state"].get("waiting", {}).get("reason") == "CreateContainerConfigError" for status in statuses
        )

    wait_until(waiting, "CreateContainerConfigError", describe=cluster.describe)
    cluster.api.post(f"{cluster.core}/configmaps", {"metadata": {"name": "late"}, "data": {"plan": "x"}})
    cluster.wait_for_condition("Complete")


def test_init_containers_share_volumes_and_failed_starts_say_why(cluster: Cluster, kubelet: KubeletFactory) -> None:
    kubelet()
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    init = {
        "name": "init",
        "image": "none",
        "command": ["sh", "-c", "echo ready >/shared/file"],
        "volumeMounts": mounts,
    }
    cluster.create_job(
        pod={"initContainers": [init], "volumes": [{"name": "shared", "emptyDir": {}}]},
        container={
            "command": ["sh", "-c", "grep -q ready /shared/file && exec /no/such/program"],
            "volumeMounts": mounts,
        },
    )
    cluster.wait_for_condition("Failed")
    terminated = cluster.pods()[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert terminated["exitCode"] == 127


def test_a_restarted_container_reaches_the_api_server_as_its_service_account(
    cluster: Cluster, kubelet: KubeletFactory
) -> None:
    node = kubelet()
    cluster.create_job(
        """
        import os, ssl, sys, urllib.request
        from pathlib import Path
        if not Path("/state/restarted").exists():
            Path("/state/restarted").touch()
            sys.exit(1)
        account = Path("/var/run/secrets/kubernetes.io/serviceaccount")
        server = "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}".format(**os.environ)
        review = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        headers = {"Authorization": "Bearer " + (account / "token").read_text(), "Content-Type": "application/json"}
        request = urllib.request.Request(server + review, b"{}", headers)
        trust = ssl.create_default_context(cafile=account / "ca.crt")
        print((account / "namespace").read_text(), urllib.request.urlopen(request, context=trust).read().decode())
        """,
        pod={
            "restartPolicy": "OnFailure",
            "automountServiceAccountToken": True,
            "volumes": [{"name": "state", "emptyDir": {}}],
        },
        container={"volumeMounts": [{"name": "state", "mountPath": "/state"}]},
        backoffLimit=5,
    )
    cluster.wait_for_condition("Complete")
    pod = cluster.pods()[0]
    status = pod["status"]["containerStatuses"][0]
    assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"]) == (1, 1)
    printed = node.logs(cluster.namespace, pod["metadata"]["name"])
    assert printed.startswith(cluster.namespace)
    assert service_account_user(cluster.namespace, "default") in printed


def test_extended_resources_decide_what_fits(cluster: Cluster, kubelet: KubeletFactory) -> None:
    kubelet("scripted", capacity={"nvidia.com/gpu": "2"}, labels={"nvidia.com/gpu.product": "H200"})
    limits = {"resources": {"limits": {"nvidia.com/gpu": "3"}}}
    cluster.create_job(pod={"nodeSelector": {"nvidia.com/gpu.product": "H200"}}, container=limits)

    def unschedulable() -> object:
        return "Insufficient nvidia.com/gpu" in str(cluster.describe())

    wait_until(unschedulable, "three GPUs don't fit on two", describe=cluster.describe)
    kubelet("scripted", name="bigger", capacity={"nvidia.com/gpu": "4"}, labels={"nvidia.com/gpu.product": "H200"})
    cluster.wait_for_condition("Complete")
    assert cluster.pods()[0]["spec"]["nodeName"] == "bigger"


def test_sixty_scripted_jobs_at_once(cluster: Cluster, kubelet: KubeletFactory) -> None:
    kubelet("scripted")
    for number in range(60):
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}}
        cluster.api.post(cluster.jobs, {"metadata": {"name": f"job-{number}"}, "spec": {"template": template}})

    def all_done() -> bool:
        return all(job["status"].get("succeeded") == 1 for job in cluster.api.items(cluster.jobs))

    wait_until(all_done, "60 Jobs complete", seconds=60)


def test_garbage_collection_follows_owner_references(cluster: Cluster) -> None:
    owner = cluster.api.post(f"{cluster.core}/configmaps", {"metadata": {"name": "owner"}})["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"], "controller": True}
    for resource in ("configmaps", "secrets"):
        cluster.api.post(f"{cluster.core}/{resource}", {"metadata": {"name": "child", "ownerReferences": [reference]}})
    cluster.api.delete(f"{cluster.core}/configmaps/owner")

    def children() -> list[Object]:
        found = cluster.api.items(f"{cluster.core}/configmaps") + cluster.api.items(f"{cluster.core}/secrets")
        return [each for each in found if each["metadata"]["name"] in ("owner", "child")]

    wait_until(lambda: not children(), "children collected", describe=children)


@pytest.fixture
def reader(cluster: Cluster, control_plane: ControlPlane) -> Api:
    """A ServiceAccount named reader that may do everything with ConfigMaps of its namespace, and nothing else."""
    cluster.api.post(f"{cluster.core}/serviceaccounts", {"metadata": {"name": "reader"}})
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{cluster.namespace}"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]
    cluster.api.post(f"{rbac}/roles", {"metadata": {"name": "reader"}, "rules": rules})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    subjects = [{"kind": "ServiceAccount", "name": "reader", "namespace": cluster.namespace}]
    cluster.api.post(f"{rbac}/rolebindings", {"metadata": {"name": "reader"}, "roleRef": role, "subjects": subjects})
    api = Api(control_plane.service_account_kubeconfig(cluster.namespace, "reader"))

    review = {
        "spec": {"resourceAttributes": {"namespace": cluster.namespace, "resource": "configmaps", "verb": "list"}}
    }
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    wait_until(lambda: api.post(reviews, review)["status"]["allowed"], "the API server knows of the role")
    return api


def test_audit_counts_every_request_once(cluster: Cluster, control_plane: ControlPlane, reader: Api) -> None:
    audit, path = control_plane.audit, f"{cluster.core}/configmaps"
    user = service_account_user(cluster.namespace, "reader")
    before = audit.mark()
    reader.post(path, {"metadata": {"name": "a"}, "data": {"k": "v"}})
    reader.patch(f"{path}/a", {"data": {"k": "w"}})
    reader.get(f"{path}/a")
    with reader.watch(path, fieldSelector="metadata.name=a") as watch:
        events = iter(watch)
        assert next(events)[0] == "ADDED"  # from the list; the watch starts after it
        middle = audit.mark()
        reader.delete(f"{path}/a")
        assert next(events)[0] == "DELETED"
    with pytest.raises(ApiException):
        reader.get(f"{path}/a")
    after = audit.mark()
    cluster.api.get(path)  # another user, and too late

    assert audit.count(before, after, user=user) == {
        ("create", "configmaps"): 1,
        ("patch", "configmaps"): 1,
        ("get", "configmaps"): 2,
        ("list", "configmaps"): 1,
        ("watch", "configmaps"): 1,
        ("delete", "configmaps"): 1,
    }
    writes = audit.writes(before, after, user=user, name="a", namespace=cluster.namespace)
    assert [(write.verb, write.code) for write in writes] == [("create", 201), ("patch", 200), ("delete", 200)]
    assert [write.body["data"] for write in writes[:2]] == [{"k": "v"}, {"k": "w"}]
    assert audit.count(before, middle, user=user).total() == 4
    assert [request.code for request in audit.requests(middle, after, user=user, verbs={"get"})] == [404]
    assert audit.requests(after, user=user) == []


def test_rbac_denies_what_was_not_granted(cluster: Cluster, reader: Api) -> None:
    reader.post(f"{cluster.core}/configmaps", {"metadata": {"name": "allowed"}})
    for path in (f"{cluster.core}/secrets", cluster.jobs, "/api/v1/namespaces/default/configmaps"):
        with pytest.raises(ApiException) as denied:
            reader.get(path)
        assert denied.value.status == 403
