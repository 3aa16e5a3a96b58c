"""The CRD on a real API server: what it accepts, fills in and refuses is what the models and rules say."""

import copy
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes.client import ApiException

from finetune_api.compatibility import RULES
from finetune_api.errors import InvalidFineTuneJob
from finetune_api.names import API_VERSION, PLURAL
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import WorkloadStatus
from finetune_operator.manifests.build import build_manifests
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.documents import load_documents
from finetune_operator.spec.fields import Shape, build_example
from finetune_operator.spec.parse import parse_finetunejob
from tests import strategies
from tests.cluster.harness.api import Object
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.definitions import wait_for_definition
from tests.invalid import Invalid, load_corpus
from tools.crd_compatibility import DECIDED

REPOSITORY = Path(__file__).parents[2]
CRD = REPOSITORY / "crds" / "finetune.dev_finetunejobs.yaml"
RELEASED = sorted((REPOSITORY / "crds" / "released").glob("*.yaml"))
GOLDEN = sorted((REPOSITORY / "tests" / "golden" / "jobs").glob("*.yaml"))
EXAMPLES = sorted((REPOSITORY / "manifests" / "examples").glob("*.yaml"))
MINIMAL: Object = {
    "apiVersion": API_VERSION,
    "kind": "FineTuneJob",
    "metadata": {"name": "minimal"},
    "spec": {"model": {"source": "hf://org/model"}, "dataset": {"source": "pvc://data/train.jsonl"}},
}


class Refused(Exception):
    """What the API server said: its whole message, and (field, message) of each cause."""

    def __init__(self, error: ApiException) -> None:
        body = json.loads(error.body)
        self.message: str = body["message"]
        self.causes = [
            (cause.get("field", ""), cause["message"]) for cause in body.get("details", {}).get("causes", [])
        ]
        super().__init__(self.message)


class Jobs:
    """FineTuneJobs of one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str, api_version: str = API_VERSION) -> None:
        self.api = control_plane.api
        self.path = f"/apis/{api_version}/namespaces/{namespace}/{PLURAL}"

    def create(self, document: Object, **query: str) -> Object:
        """Raises Refused."""
        try:
            return self.api.post(self.path, document, fieldValidation="Strict", **query)
        except ApiException as error:
            raise Refused(error) from None

    def dry_run(self, document: Object) -> Object:
        return self.create(document, dryRun="All")

    def patch(self, name: str, body: Object, subresource: str = "") -> Object:
        """Raises Refused."""
        try:
            return self.api.patch(f"{self.path}/{name}{subresource}", body)
        except ApiException as error:
            raise Refused(error) from None


@pytest.fixture(scope="module")
def crd(control_plane: ControlPlane) -> None:
    """The CRD as it lies in the repository, established."""
    _establish(control_plane, CRD.read_text(), API_VERSION)


def _establish(control_plane: ControlPlane, definition: str, api_version: str) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=definition)
    wait_for_definition(control_plane, yaml.safe_load(definition)["metadata"]["name"])
    # Established is told before the endpoint serves the new schema.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            control_plane.api.get(f"/apis/{api_version}/{PLURAL}")
            return
        except ApiException:
            time.sleep(0.1)
    pytest.fail(f"the API server does not serve {PLURAL} of {api_version}")


@pytest.fixture
def jobs(crd: None, control_plane: ControlPlane, namespace: str) -> Jobs:
    return Jobs(control_plane, namespace)


@pytest.fixture(scope="module")
def shared(crd: None, control_plane: ControlPlane) -> Jobs:
    """For dry runs, which leave nothing behind."""
    return Jobs(control_plane, "default")


def _of(refused_by: str) -> list[Any]:
    return [pytest.param(case, id=case.path.stem) for case in load_corpus() if case.refused_by == refused_by]


@pytest.mark.parametrize("case", _of("crd"))
def test_api_server_refuses_and_names_the_field(shared: Jobs, case: Invalid) -> None:
    with pytest.raises(Refused) as caught:
        shared.dry_run(case.document)
    refused = caught.value
    if case.server_says:
        assert case.server_says in refused.message
        return
    # The server names the list or map where its rule stands, we the entry in it.
    named = [field for field, _ in refused.causes] or [refused.message.rsplit('unknown field "', 1)[-1].rstrip('"')]
    assert any(
        field and (_plain(case.field).startswith(_plain(field)) or _plain(field).startswith(_plain(case.field)))
        for field in named
    ), refused
    assert not any(field == "spec" for field in named) or case.field == "spec"


def _plain(path: str) -> str:
    """Paths as both sides write them: labels.key for labels["key"] and labels[key]."""
    return path.replace('["', ".").replace('"]', "").strip(".")


@pytest.mark.parametrize("case", _of("operator"))
def test_api_server_cannot_know(shared: Jobs, case: Invalid) -> None:
    shared.dry_run(case.document)


@pytest.mark.parametrize("case", _of("kubectl"))
def test_kubectl_refuses(crd: None, control_plane: ControlPlane, case: Invalid) -> None:
    with pytest.raises(Exception, match=r"exit status|non-zero"):
        control_plane.kubectl("apply", "--dry-run=server", "--filename", str(case.path))


def _normal(spec: Any) -> Any:
    """A spec as pydantic dumps it: without nulls, quantities as strings."""
    return parse_finetunejob(MINIMAL | {"spec": spec}).spec.model_dump(by_alias=True, mode="json", exclude_none=True)


def test_minimal_job_is_defaulted_as_the_models_say(shared: Jobs) -> None:
    created = shared.dry_run(MINIMAL)
    assert created["spec"] == _normal(MINIMAL["spec"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_accepted_and_defaulted_as_the_models_say(shared: Jobs, path: Path) -> None:
    for document in load_documents(path.read_text()):
        if document.content["kind"] == "FineTuneJob":
            created = shared.dry_run(document.content | {"metadata": {"name": "example"}})
            assert created["spec"] == _normal(document.content["spec"])


RULE_OF_MESSAGE = {f"{rule.message}; {rule.mend}": rule for rule in RULES}


def _broken_rules(document: Object) -> set[str]:
    """Names of the rules that Python says are broken, of those that the API server can know."""
    try:
        parse_finetunejob(document)
    except InvalidFineTuneJob as error:
        broken = {RULE_OF_MESSAGE[f"{problem.message}; {problem.mend}"] for problem in error.problems}
        return {rule.name for rule in broken if rule.cel is not None}
    return set()


def test_rules_say_the_same_in_python_and_in_the_api_server(shared: Jobs) -> None:
    """Random FineTuneJobs of the right shape: both sides find the same rules broken, and the same defaults."""
    met: set[str] = set()
    accepted = 0

    @settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategies.jobs())
    def compare(document: Object) -> None:
        nonlocal accepted
        expected = _broken_rules(document)
        try:
            created = shared.dry_run(document)
        except Refused as refused:
            found = {
                rule.name
                for rule in RULES
                if any(f": {rule.message}; {rule.mend}" in message for _, message in refused.causes)
            }
            assert found == expected
            met.update(found)
            return
        assert expected == set()
        accepted += 1
        spec = FineTuneJobSpec.model_validate_json(json.dumps(document["spec"]))
        assert _by_value(created["spec"]) == _by_value(spec.model_dump(by_alias=True, mode="json", exclude_none=True))

    compare()
    for case in load_corpus():
        if case.path.stem[4:].startswith("rule-"):
            compare.hypothesis.inner_test(case.document)  # type: ignore[attr-defined]
    assert met == {rule.name for rule in RULES if rule.cel is not None}
    assert accepted > 5


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_what_a_released_definition_took_is_taken(shared: Jobs, control_plane: ControlPlane, file: Path) -> None:
    """Both definitions stand beside each other, the released one under another group."""
    definition, group = yaml.safe_load(file.read_text()), "released.finetune.dev"
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    definition["spec"]["group"], definition["metadata"]["name"] = group, f"{PLURAL}.{group}"
    api_version = f"{group}/{definition['spec']['versions'][0]['name']}"
    _establish(control_plane, yaml.safe_dump(definition), api_version)
    released, taken = Jobs(control_plane, "default", api_version), 0

    def compare(spec: Object) -> None:
        nonlocal taken
        try:
            before = released.dry_run(MINIMAL | {"apiVersion": api_version, "spec": spec})
        except Refused:
            return
        after = shared.dry_run(MINIMAL | {"spec": spec})
        assert _extends(after["spec"], before["spec"])
        taken += 1

    @settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategies.jobs(), st.sets(st.sampled_from(sorted(schema["properties"]["spec"]["properties"])), max_size=3))
    def draw(document: Object, sections: set[str]) -> None:
        drawn = {name: part for name, part in document["spec"].items() if name in {"model", "dataset"} | sections}
        compare(_prune(drawn, schema["properties"]["spec"]))

    draw()
    for path in (*EXAMPLES, *GOLDEN):
        for document in load_documents(path.read_text()):
            compare(document.content.get("spec", {}))
    for case in load_corpus():
        if isinstance(case.document, dict):
            compare(case.document.get("spec", {}))
    assert taken > 60


def _prune(value: Any, schema: Object) -> Any:
    """Without the fields that a schema doesn't have."""
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        return {key: _prune(each, known[key]) for key, each in value.items() if key in known}
    return [_prune(each, schema["items"]) for each in value] if isinstance(value, list) else value


def _extends(value: Any, old: Any, path: str = "") -> bool:
    """Whether a spec says all that the old one says, or the plan will."""
    if isinstance(old, dict):
        return all(_extends((value or {}).get(key), each, f"{path}.{key}") for key, each in old.items())
    return bool(value == old or (value is None and DECIDED.get(path[1:]) == old))


def _by_value(value: Any) -> Any:
    """Numbers and quantities by value: 4 and "4", 1 and 1.0."""
    if isinstance(value, dict):
        return {key: _by_value(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_by_value(each) for each in value]
    return value if isinstance(value, bool) else f"{value:g}" if isinstance(value, int | float) else value


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(document=strategies.jobs())
def test_what_is_rendered_for_an_accepted_job_is_accepted(shared: Jobs, document: Object) -> None:
    """Random jobs, mended until the rules hold: the API server takes every object that the operator would apply."""
    job = parse_finetunejob(_mend(document))
    layout = ContainerLayout()
    for manifest in build_manifests(job, decide_plan(job, Settings(), layout), Settings(), layout):
        if manifest["kind"] in ("PyTorchJob", "PodGroup"):  # not served here; see tests/chart/test_workloads.py
            continue
        group = "/api/v1" if manifest["apiVersion"] == "v1" else f"/apis/{manifest['apiVersion']}"
        path = f"{group}/namespaces/default/{manifest['kind'].lower()}s"
        shared.api.post(path, manifest, dryRun="All", fieldValidation="Strict")


def _mend(document: Object) -> Object:
    """Drops the section or list that a broken rule names until none is broken."""
    while True:
        try:
            parse_finetunejob(document)
            return document
        except InvalidFineTuneJob as error:
            _, section, *rest = re.split(r"[.\[]", error.problems[0].field)
            if section in ("model", "dataset") and len(rest) == 0:
                raise
            place = document["spec"][section]
            (place if rest and rest[0] in place else document["spec"]).pop(
                rest[0] if rest and rest[0] in place else section
            )


def test_unknown_fields_are_refused_by_kubectl_and_pruned_otherwise(
    jobs: Jobs, control_plane: ControlPlane, namespace: str
) -> None:
    document = copy.deepcopy(MINIMAL)
    document["spec"]["method"] = {"rnak": 4}
    with pytest.raises(Exception, match=r"exit status|non-zero") as caught:
        control_plane.kubectl("apply", "--filename", "-", namespace=namespace, stdin=yaml.safe_dump(document))
    assert 'unknown field "spec.method.rnak"' in "".join(caught.value.__notes__)
    pruned = jobs.api.post(jobs.path, document, fieldValidation="Ignore")
    assert pruned["spec"]["method"] == {"type": "lora"}


WORKLOAD = build_example(Shape("object", model=WorkloadStatus))
CHANGES: list[tuple[str, Object]] = [
    ("model", {"source": "hf://org/other"}),
    ("dataset", {"maxSamples": 3}),
    ("method", {"rank": 3}),
    ("objective", {"responseOnly": True}),
    ("training", {"epochs": 9}),
    ("memory", {"optimization": 1}),
    ("parallelism", {"strategy": "single"}),
    ("resources", {"cpu": "3"}),
    ("network", {"fabric": "tcp"}),
    ("preflight", {"enabled": True}),
    ("spot", {"enabled": True}),
    ("checkpoint", {"keep": 3}),
    ("evaluation", {"samples": ["Hello?"]}),
    ("output", {"verify": False}),
    ("observability", {"metricsPort": 9000}),
    ("podTemplate", {"labels": {"a": "b"}}),
    ("runPolicy", {"backoffLimit": 9}),
]


@pytest.fixture
def started(jobs: Jobs) -> Jobs:
    jobs.create(MINIMAL)
    jobs.patch("minimal", {"status": {"workload": WORKLOAD}}, "/status")
    return jobs


def test_all_may_change_before_the_start(jobs: Jobs) -> None:
    jobs.create(MINIMAL)
    jobs.patch("minimal", {"status": {"phase": "Pending"}}, "/status")
    for section, change in CHANGES:
        jobs.patch("minimal", {"spec": {section: change}})


@pytest.mark.parametrize(("section", "change"), CHANGES, ids=lambda each: each if isinstance(each, str) else "")
def test_section_is_frozen_after_the_start(started: Jobs, section: str, change: Object) -> None:
    with pytest.raises(Refused) as caught:
        started.patch("minimal", {"spec": {section: change}})
    ((field, message),) = caught.value.causes
    assert field == f"spec.{section}" + (".backoffLimit" if section == "runPolicy" else "")
    assert "can't change after the start" in message and "make a new FineTuneJob" in message


def test_every_section_but_the_budget_has_a_frozen_test() -> None:
    sections = {field.alias for field in FineTuneJobSpec.model_fields.values()}
    assert {section for section, _ in CHANGES} == sections - {"budget"}


def test_what_stays_mutable_after_the_start(started: Jobs) -> None:
    changed = started.patch(
        "minimal", {"spec": {"runPolicy": {"suspend": True, "activeDeadline": "2h", "ttlAfterFinished": "1h"}}}
    )
    assert changed["spec"]["runPolicy"]["suspend"] is True
    started.patch("minimal", {"spec": {"budget": {"maxGpuHours": 10, "onExceeded": "fail"}}})
    started.patch("minimal", {"metadata": {"labels": {"a": "b"}}})
    started.patch("minimal", {"status": {"phase": "Running"}}, "/status")


def test_status_is_a_subresource(started: Jobs) -> None:
    before = started.api.get(f"{started.path}/minimal")
    changed = started.patch("minimal", {"status": {"phase": "Failed"}})
    assert changed["status"] == before["status"]
    assert changed["metadata"]["generation"] == before["metadata"]["generation"]


def test_kubectl_shows_the_columns(started: Jobs, control_plane: ControlPlane, namespace: str) -> None:
    status = {
        "phase": "Running",
        "node": "gpu-1",
        "market": "spot",
        "gpuHours": 1.5,
        "cost": 3.75,
        "plan": {"hash": "1", "method": "lora", "objective": "sft", "gpus": 1, "nodes": 1, "strategy": "single"},
        "progress": {"percent": 42, "loss": 1.25, "tokensPerSecond": 900, "etaSeconds": 61},
    }
    started.patch("minimal", {"status": status}, "/status")
    header, row = control_plane.kubectl("get", "ftj", namespace=namespace).splitlines()
    shown = header.split()
    assert shown == ["NAME", "METHOD", "OBJECTIVE", "PHASE", "PROGRESS", "LOSS", "GPUS", "AGE"]
    assert row.split()[:-1] == ["minimal", "lora", "sft", "Running", "42", "1.25", "1"]
    header, row = control_plane.kubectl("get", "ftj", "--output", "wide", namespace=namespace).splitlines()
    assert header.split() == [*shown[:-1], "MODEL", "TOKENS/S", "ETA", "MARKET", "GPU-H", "COST", "NODE", "AGE"]
    assert row.split()[7:-1] == ["hf://org/model", "900", "61", "spot", "1.5", "3.75", "gpu-1"]


def test_category_and_explain(started: Jobs, control_plane: ControlPlane, namespace: str) -> None:
    assert "finetunejob.finetune.dev/minimal" in control_plane.kubectl(
        "get", "ml", "--output", "name", namespace=namespace
    )
    assert "Rank of the adapter matrices" in control_plane.kubectl("explain", "ftj.spec.method.rank")


def test_conditions_merge_by_type(started: Jobs, control_plane: ControlPlane, namespace: str) -> None:
    def condition(kind: str) -> Object:
        return {
            "type": kind,
            "status": "True",
            "reason": "Test",
            "message": "",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }

    for manager, kind in (("one", "Ready"), ("two", "Complete")):
        body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "status": {"conditions": [condition(kind)]}}
        control_plane.kubectl(
            "apply", "--server-side", "--subresource=status", "--field-manager", manager, "--filename", "-",
            namespace=namespace, stdin=yaml.safe_dump(body | {"metadata": {"name": "minimal"}}),
        )  # fmt: skip
    control_plane.kubectl("wait", "--for=condition=Complete", "--timeout=5s", "ftj/minimal", namespace=namespace)
    control_plane.kubectl("wait", "--for=condition=Ready", "--timeout=5s", "ftj/minimal", namespace=namespace)
