"""/healthz, /readyz and /metrics over HTTP, and the check that turns /healthz red when a watch fell silent."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from finetune_operator.health import HealthServer, find_faults
from finetune_operator.telemetry import Telemetry
from finetune_operator.watch import WatchFreshness

A, B = ("ns", "a"), ("ns", "b")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def reasons() -> dict[str, list[str]]:
    return {"healthz": [], "readyz": []}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def url(reasons: dict[str, list[str]], telemetry: Telemetry) -> Iterator[str]:
    server = HealthServer(0, lambda: reasons["healthz"], lambda: reasons["readyz"], telemetry.registry)
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("probe", ["healthz", "readyz"])
def test_probes_tell_their_reasons(url: str, reasons: dict[str, list[str]], probe: str) -> None:
    assert get(f"{url}/{probe}") == (200, '{"ok": true, "reasons": []}')
    reasons[probe].append("queue: a key waits for 200 s")
    status, body = get(f"{url}/{probe}")
    assert (status, json.loads(body)) == (503, {"ok": False, "reasons": ["queue: a key waits for 200 s"]})
    assert get(f"{url}/other")[0] == 404


WELL = {"watch_owes": 60.0, "watch_may_owe": 60.0, "key_waits": 120.0, "pass_runs": 300.0, "lease_rests": 30.0}


def test_at_the_limits_all_is_well() -> None:
    assert find_faults(**WELL) == []


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("watch_owes", "watch: a listed change is missing for 61 s"),
        ("key_waits", "queue: a key waits for 121 s"),
        ("pass_runs", "queue: a pass runs for 301 s"),
        ("lease_rests", "lease: no attempt for 31 s"),
    ],
)
def test_each_fault_is_told(what: str, reason: str) -> None:
    assert find_faults(**{**WELL, what: WELL[what] + 1}) == [reason]


def test_metrics_have_the_promised_names(url: str, telemetry: Telemetry) -> None:
    telemetry.reconcile_seconds.labels(result="done").observe(0.02)
    telemetry.reconcile_errors.inc()
    telemetry.api_requests.labels(verb="get", resource="jobs", code="200").inc()
    telemetry.observe_queue(lambda: 3)
    telemetry.observe_leadership(lambda: True)
    telemetry.observe_jobs(lambda: {"Running": 2})
    status, text = get(f"{url}/metrics")
    assert status == 200
    lines = text.splitlines()
    for line in [
        'finetune_operator_reconcile_duration_seconds_count{result="done"} 1.0',
        "finetune_operator_reconcile_errors_total 1.0",
        'finetune_operator_api_requests_total{code="200",resource="jobs",verb="get"} 1.0',
        "finetune_operator_queue_depth 3.0",
        "finetune_operator_leader 1.0",
        'finetune_operator_jobs{phase="Running"} 2.0',
    ]:
        assert line in lines


def test_a_phase_that_nobody_is_in_any_more_vanishes(url: str, telemetry: Telemetry) -> None:
    phases = {"Running": 1}
    telemetry.observe_jobs(lambda: phases)
    phases.clear()
    assert "finetune_operator_jobs{" not in get(f"{url}/metrics")[1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def freshness(clock: Clock) -> WatchFreshness:
    return WatchFreshness(clock)


def test_not_synced_before_the_first_list(freshness: WatchFreshness) -> None:
    assert not freshness.synced
    freshness.listed([])
    assert freshness.synced


def test_a_silent_watch_grows_stale_until_it_delivers(freshness: WatchFreshness, clock: Clock) -> None:
    freshness.delivered(A, "10", "Running", deleted=False)
    freshness.listed([(A, "12"), (B, "11")])
    clock.now = 61
    assert (freshness.synced, freshness.stale_seconds) == (False, 61)
    freshness.delivered(B, "11", "Pending", deleted=False)
    freshness.delivered(A, "11", "Running", deleted=False)
    assert freshness.stale_seconds == 61
    freshness.delivered(A, "13", "Running", deleted=False)
    assert (freshness.synced, freshness.stale_seconds) == (True, 0)


def test_a_watch_ahead_of_the_list_owes_nothing(freshness: WatchFreshness) -> None:
    freshness.delivered(A, "100", "Running", deleted=False)
    freshness.listed([(A, "99")])
    assert freshness.synced


def test_what_was_deleted_during_or_after_the_list_is_not_waited_for(freshness: WatchFreshness) -> None:
    freshness.delivered(A, "10", "Running", deleted=False)
    freshness.begin_list()
    freshness.delivered(A, "15", "Running", deleted=True)
    freshness.listed([(A, "10"), (B, "14")])
    assert not freshness.synced
    freshness.delivered(B, "20", "Running", deleted=True)
    assert freshness.synced
    assert freshness.known() == []


def test_jobs_are_counted_by_phase(freshness: WatchFreshness) -> None:
    freshness.delivered(A, "1", "Pending", deleted=False)
    freshness.delivered(B, "2", "Running", deleted=False)
    freshness.delivered(A, "3", "Running", deleted=False)
    assert freshness.count_by_phase() == {"Running": 2}
    freshness.delivered(A, "4", "Running", deleted=True)
    assert freshness.count_by_phase() == {"Running": 1}
    assert freshness.known() == [B]
