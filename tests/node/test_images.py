"""The images of both Dockerfiles, as pods run them: not as root, with a read-only root."""

import re
import textwrap

import pytest
import yaml

from tests.cluster.harness.api import Object
from tests.cluster.harness.waiting import wait_until
from tests.node.harness.images import BASE, OPERATOR, REPOSITORY, TRAINER, VERSION, reference
from tests.node.harness.node import Node
from tests.node.harness.pods import RESTRICTED_CONTAINER, RESTRICTED_POD, Pods
from tests.node.harness.sbom import build_sbom

OPERATOR_BYTES = 120e6  # over its base
WRITABLE = """
    import os
    for folder, folders, files in os.walk("/"):
        if folder == "/":
            folders[:] = set(folders) - {"proc", "sys", "dev"}
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            if not os.path.islink(path) and os.access(path, os.W_OK):
                print(path)
"""
HAS = """
    import importlib.util, os
    print(os.getuid(), os.getgid(), *(name for name in ("kopf", "torch") if importlib.util.find_spec(name)))
"""
LOAD = """
    import accelerate, bitsandbytes, datasets, deepspeed, peft, torch, transformers, trl
    weight = torch.ones(2, 2, requires_grad=True)
    (weight @ weight).sum().backward()
    print(weight.grad.sum().item(), transformers.AutoTokenizer.__name__, trl.SFTTrainer.__name__)
"""
ON_SIGTERM = """
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("ready", flush=True)
    time.sleep(600)
"""
TMP: Object = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
TMP_MOUNT: Object = {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}


def python(script: str) -> list[str]:
    return ["python", "-uc", textwrap.dedent(script)]


def test_operator_starts(pods: Pods) -> None:
    assert pods.run_restricted("version", OPERATOR, args=["--version"]) == f"{VERSION}\n"


def test_trainer_starts(pods: Pods) -> None:
    assert "--plan" in pods.run_restricted("help", TRAINER, args=["--help"])


@pytest.mark.parametrize(("image", "packages"), [(OPERATOR, "kopf"), (TRAINER, "torch")])
def test_user_and_packages(pods: Pods, image: str, packages: str) -> None:
    """The user is the image's own: the pod names none, and the kubelet refuses root."""
    assert pods.run_restricted("packages", image, command=python(HAS)) == f"1000 1000 {packages}\n"


@pytest.mark.parametrize("image", [OPERATOR, TRAINER])
def test_nothing_is_writable(pods: Pods, image: str) -> None:
    """Neither with a read-only root nor, but for the usual folders of all, without."""
    assert pods.run_restricted("read-only", image, silent=True, command=python(WRITABLE)) == ""
    writable = pods.run("plain", image, pod={"securityContext": RESTRICTED_POD}, command=python(WRITABLE))
    assert set(writable.split()) <= {"/tmp", "/var/tmp", "/run/lock"}


def test_trainer_trains_without_a_writable_root(pods: Pods) -> None:
    pod = {"securityContext": RESTRICTED_POD} | TMP
    output = pods.run("loads", TRAINER, pod, command=python(LOAD), securityContext=RESTRICTED_CONTAINER, **TMP_MOUNT)
    assert output.splitlines()[-1] == "16.0 AutoTokenizer SFTTrainer"


@pytest.mark.parametrize("image", [OPERATOR, TRAINER])
def test_sigterm_reaches_the_process(pods: Pods, image: str) -> None:
    pods.create("runs", image, command=["/usr/bin/tini", "--", *python(ON_SIGTERM)])
    pods.wait_for_phase("runs", "Running")
    wait_until(lambda: "ready" in pods.logs("runs"), "a process that listens")
    (status,) = pods.delete("runs")["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 75


def test_operator_image_is_small(node: Node) -> None:
    assert node.runtime.size(reference(OPERATOR)) - node.runtime.size(reference(BASE)) < OPERATOR_BYTES


def test_operator_image_is_reproducible(node: Node) -> None:
    assert node.images.builder.build_again(OPERATOR) == node.runtime.layers(reference(OPERATOR))


def test_compose_runs_the_trainer_image(pods: Pods) -> None:
    (service,) = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"].values()
    assert service["image"] == f"{TRAINER}:{VERSION}"
    assert (REPOSITORY / service["build"]["dockerfile"]).is_file()
    assert (
        pods.run_restricted("compose", TRAINER, command=[*service["entrypoint"], "version"]).strip().endswith(VERSION)
    )
    assert service["command"][:2] == ["run", "/jobs/quickstart.yaml"]
    assert "--output-dir" in pods.run_restricted("command", TRAINER, command=[*service["entrypoint"], "run", "--help"])


def test_sbom_lists_what_is_locked(node: Node) -> None:
    locked = dict(
        re.findall(r"^([\w.-]+)==([\w.]+)", (REPOSITORY / "requirements/operator.txt").read_text(), re.MULTILINE)
    )
    found = build_sbom(node.images.builder, OPERATOR)
    versions = {part["name"]: part["version"] for part in found["components"] if part["purl"].startswith("pkg:pypi/")}
    assert versions["kopf"] == locked["kopf"]
    assert {
        name: version for name, version in versions.items() if name != "finetune-operator"
    }.items() <= locked.items()
    assert any(part["purl"].startswith("pkg:deb/debian/libc6@") for part in found["components"])


@pytest.mark.parametrize("image", [OPERATOR, TRAINER])
def test_labels(node: Node, image: str) -> None:
    labels = node.runtime.config(reference(image))["Labels"]
    assert labels["org.opencontainers.image.title"] == image
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
