"""The chart grants the operator what it uses, no more and no less: by the audit logs of the whole suite. Runs last."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.chart.chart import render
from tests.cluster.harness import rights
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.rights import Right

USER = "system:serviceaccount:any:finetune-operator"


def is_whole_suite(config: pytest.Config) -> bool:
    """Whether pytest was called for all tests there are."""
    chosen = any(config.getoption(option) for option in ("keyword", "markexpr", "deselect", "lf"))
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen


def read_granted() -> set[Right]:
    return rights.list_granted(render())


@pytest.mark.last
def test_the_operator_uses_what_the_chart_grants(control_plane: ControlPlane, request: pytest.FixtureRequest) -> None:
    used = rights.ended + rights.count_used(control_plane.audit.path)
    granted = read_granted()
    print(*(f"{count:7} {right}" for right, count in sorted(used.items())), sep="\n")
    assert [str(right) for right in used if right not in granted] == [], "used and not granted"
    if not is_whole_suite(request.config):
        pytest.skip("what is granted and never used shows in a run of the whole suite only")
    assert [str(right) for right in granted if right not in used] == [], "granted and never used"


def line(verb: str, user: str = USER, code: int = 200, stage: str = "ResponseComplete", **reference: str) -> str:
    return json.dumps(
        {"verb": verb, "stage": stage, "user": {"username": user}, "responseStatus": {"code": code}}
        | ({"objectRef": reference} if reference else {})
    )


def test_the_log_is_counted_as_rbac_sees_it(tmp_path: Path) -> None:
    lines = [
        line("get"),  # /version
        line("get", resource="pods", user="admin"),
        line("watch", resource="pods", stage="ResponseStarted"),
        line("watch", resource="pods"),
        line("patch", resource="jobs", apiGroup="batch", code=201),
        line("patch", resource="jobs", apiGroup="batch"),
        line("update", resource="finetunejobs", apiGroup="finetune.dev", subresource="status"),
    ]
    log = tmp_path / "audit.jsonl"
    log.write_text("\n".join(lines) + "\n")
    assert rights.count_used(log) == Counter(
        {
            Right("watch", "", "pods"): 1,
            Right("create", "batch", "jobs"): 1,
            Right("patch", "batch", "jobs"): 2,
            Right("update", "finetune.dev", "finetunejobs/status"): 1,
        }
    )


def test_only_roles_bound_to_the_operator_count() -> None:
    granted = read_granted()
    assert Right("update", "coordination.k8s.io", "leases") in granted
    assert Right("update", "finetune.dev", "finetunejobs/status") in granted
    # The roles for people are bound to nobody.
    assert Right("delete", "finetune.dev", "finetunejobs") not in granted
    assert not {right for right in granted if right.resource == "secrets"}
