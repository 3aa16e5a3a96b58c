"""The quickstart as README has it on a cluster: Helm, kubectl apply, an adapter that plain PEFT loads; watched by Prometheus.

All in namespaces that enforce Pod Security 'restricted'.
"""

import json
import textwrap
import time

import pytest
import yaml

from finetune_api import metrics, names
from finetune_api.names import Condition, Phase
from finetune_operator.telemetry import PREFIX as OPERATOR_PREFIX
from tests.chart.chart import CHART, render
from tests.chart.dashboard import fill_in, load_queries
from tests.chart.release import Release
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.waiting import wait_until
from tests.cluster.kubectl_plugin import Plugin
from tests.cluster.operator_process import SYSTEM
from tests.node.harness.images import TRAINER
from tests.node.harness.node import Node
from tests.node.harness.pods import RESTRICTED_CONTAINER, RESTRICTED_POD, Pods
from tests.node.harness.prometheus import Prometheus
from tests.node.training import QUICKSTART, Training

MONITORED = ("--set", "monitoring.serviceMonitor.enabled=true", "--set", "monitoring.podMonitor.enabled=true")
OF_GPUS = ("DCGM_", "finetune_gpu_")

ANSWER = """
    import importlib.metadata, json, sys
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter, package, wanted, *prompts = sys.argv[1:]
    (file,) = (each for each in importlib.metadata.files(package) if str(each).endswith(wanted))
    folder = file.locate().parent
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        print(json.dumps(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()))
"""


class Story:
    """What became of the quickstart, and what each part of it took."""

    def __init__(self, control_plane: ControlPlane, training: Training) -> None:
        self.training = training
        self.control_plane = control_plane
        self.seconds: dict[str, float] = {}
        self.first_process = ""
        self.log = ""
        self.prometheus: Prometheus
        self.began = self.ended = 0.0


@pytest.fixture(scope="module")
def story(release: Release, restricted_namespace: str, node: Node, report: list[str]) -> Story:
    training = Training(node.control_plane, restricted_namespace, "quickstart")
    story = Story(node.control_plane, training)
    began = time.monotonic()

    def reached(what: str) -> None:
        story.seconds[what] = time.monotonic() - began

    monitors = [each for each in render(*MONITORED) if each["kind"] in ("ServiceMonitor", "PodMonitor")]
    story.prometheus = Prometheus(node, monitors, CHART / "rules" / "finetune.yaml")
    story.began = time.time()
    release.install("--wait", "--timeout", "3m")
    reached("installed")
    training.kubectl("apply", "--filename", str(QUICKSTART))
    training.wait_for_step(1)
    reached("first steps seen")
    pod = training.pod()["metadata"]["name"]
    story.first_process = training.kubectl("exec", pod, "--", "cat", "/proc/1/comm").strip()
    training.wait_for(Condition.COMPLETE)
    reached("complete")
    story.ended = time.time()
    story.log = training.kubectl("logs", pod)
    report.extend(f"quickstart {what}: after {seconds:.0f} s" for what, seconds in story.seconds.items())
    print(training.kubectl("get", "finetunejob", "--output", "wide"))
    return story


def test_the_job_is_complete(story: Story) -> None:
    status = story.training.get()["status"]
    assert status["phase"] == Phase.SUCCEEDED
    assert status["progress"]["percent"] == 100
    result = json.loads((story.training.output() / "result.json").read_text())
    assert result["evalLoss"] <= result["evalLossBefore"] / 2


def test_the_trainer_runs_behind_an_init_process(story: Story) -> None:
    """The image's entrypoint: it forwards signals and reaps."""
    assert story.first_process == "tini"


def test_the_log_can_be_read_by_machines(story: Story) -> None:
    others = [line for line in story.log.splitlines() if not line.startswith("{")]
    assert "\n".join(others) == ""
    assert [json.loads(line) for line in story.log.splitlines() if '"step"' in line]


def test_the_plugin_shows_log_and_status(story: Story) -> None:
    plugin = Plugin(story.control_plane, story.training.namespace)
    last = plugin.run("logs", "quickstart", "--tail", "1")
    assert json.loads(last) == json.loads(story.log.splitlines()[-1])
    card = plugin.run("status", "quickstart", "--watch")
    assert "step 90 of 90" in card and "adapter, pvc://quickstart-output/adapter" in card
    assert "Pulled" in plugin.run("events", "quickstart")


def test_the_adapter_loads_in_plain_peft_and_answers_as_the_trainer_said(story: Story) -> None:
    """From the claim, in another pod, by the libraries alone."""
    job = next(yaml.safe_load_all(QUICKSTART.read_text()))["spec"]
    _, _, rest = job["model"]["source"].partition("://")
    package, _, file = rest.partition("/")
    (artifact,) = story.training.get()["status"]["artifacts"]
    claim, _, folder = artifact["uri"].removeprefix("pvc://").partition("/")
    volumes = [
        {"name": "output", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [{"name": "output", "mountPath": "/output", "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}]
    pods = Pods(story.control_plane, story.training.namespace)
    printed = pods.run(
        "plain-peft",
        TRAINER,
        {"securityContext": RESTRICTED_POD, "automountServiceAccountToken": False, "volumes": volumes},
        command=["python", "-c", textwrap.dedent(ANSWER)],
        args=[f"/output/{folder}", package, file, *job["evaluation"]["samples"]],
        securityContext=RESTRICTED_CONTAINER,
        volumeMounts=mounts,
    )
    answers = [json.loads(line) for line in printed.splitlines() if line.startswith('"')]
    samples = json.loads((story.training.output() / "result.json").read_text())["samples"]
    for sample in samples:
        print(f"\n? {sample['prompt']}\n  before: {sample['before']}\n  after:  {sample['after']}")
    assert answers == [sample["after"] for sample in samples]
    assert "ftj" in answers[0]


def test_prometheus_finds_operator_and_trainer_by_the_charts_monitors(story: Story) -> None:
    up = story.prometheus.query_range("up", story.began, story.ended)
    found = {(series["metric"]["namespace"], series["metric"]["container"]) for series in up}
    assert found == {(SYSTEM, "operator"), (story.training.namespace, names.CONTAINER)}
    assert len([series for series in up if series["metric"]["namespace"] == SYSTEM]) == 2  # replicas
    assert [series["metric"] for series in up if "1" not in dict(map(reversed, series["values"]))] == []  # type: ignore[call-overload]
    assert {(rule["name"], rule["health"]) for rule in story.prometheus.rules() if rule["health"] != "ok"} == set()
    assert [rule["name"] for rule in story.prometheus.rules() if rule["state"] == "firing"] == []


def test_prometheus_has_the_series_of_the_run(story: Story) -> None:
    def values(expression: str) -> list[float]:
        (series,) = story.prometheus.query_range(expression, story.began, story.ended)
        return [float(value) for _, value in series["values"]]

    job = f'namespace="{story.training.namespace}", job="quickstart"'
    loss = values(f"{metrics.LOSS.name}{{{job}}}")
    assert loss[-1] < loss[0] / 2
    assert min(values(f"{metrics.EVAL_LOSS.name}{{{job}}}")) < 1
    assert max(values(f"{metrics.TOKENS_PER_SECOND.name}{{{job}}}")) > 0
    expected = {Phase.PREPARING, Phase.RUNNING, Phase.SUCCEEDED}
    jobs = f"max by (phase) ({OPERATOR_PREFIX}_jobs) > 0"

    def seen() -> set[str]:
        found = story.prometheus.query_range(jobs, story.began, time.time(), 1)
        return {series["metric"]["phase"] for series in found}

    wait_until(lambda: expected <= seen(), f"phases {expected}", describe=seen)  # the last one comes after the end


def test_every_query_of_the_dashboard_that_needs_no_gpu_has_data(story: Story) -> None:
    empty, shown = [], 0
    for title, letter, expression in load_queries():
        if any(prefix in expression for prefix in OF_GPUS):
            continue
        filled = fill_in(expression, story.training.namespace, "quickstart", rate_interval="20s")
        shown += 1
        if not story.prometheus.query_range(filled, story.began, story.ended):
            empty.append((title, letter, filled))
    assert empty == []
    print(f"{shown} queries of the dashboard have data")
    assert shown >= 20


def test_a_trainer_that_violates_restricted_is_refused_and_the_status_says_why(story: Story) -> None:
    job = next(yaml.safe_load_all(QUICKSTART.read_text()))
    violating = Training(story.control_plane, story.training.namespace, "root")
    job["metadata"]["name"] = violating.name
    job["spec"]["podTemplate"] = {"securityContext": {"runAsNonRoot": False, "runAsUser": 0}}
    violating.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(job))

    def told() -> str:
        return violating.get().get("status", {}).get("message", "")

    wait_until(lambda: "violates PodSecurity" in told(), "the reason in the status", describe=told)
    assert told().startswith('The pod is forbidden: violates PodSecurity "restricted:latest"')
    assert "runAsNonRoot != true" in told()
    assert violating.pods() == []
    print(violating.kubectl("describe", "finetunejob", "root").split("Status:")[1])
    violating.kubectl("delete", "finetunejob", "root")
