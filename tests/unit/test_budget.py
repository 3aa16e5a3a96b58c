"""What a job has spent, and what comes of a budget that is used up."""

from datetime import timedelta

import pytest

from finetune_api.names import Phase, Reason
from finetune_operator.intent import decide_intent
from finetune_operator.manifests.build import build_manifests
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.plan.price import find_unpriced
from finetune_operator.run_state import read_run_state
from finetune_operator.settings import GpuPrice, Settings
from finetune_operator.spec.parse import parse_finetunejob
from finetune_operator.status.events import decide_events
from finetune_operator.status.spend import decide_spend
from finetune_operator.status.stage import decide_failure
from tests.unit.test_status import status_of
from tests.unit.world import NOW, RUNNING, build_finetunejob, build_pod, build_snapshot, build_workload, decide

PRICED = Settings(
    gpu_prices={"default": GpuPrice(on_demand=2.0), "A100": GpuPrice(on_demand=4.0, spot=1.5)},
)
BEGAN = "2026-01-01T11:00:00Z"  # an hour before NOW
GPUS = {"resources": {"gpu": {"count": 4}}}


def ended(at: str, **fields):
    state = {"terminated": {"exitCode": 75, "reason": "Error", "finishedAt": at}}
    return build_pod(state, startTime=BEGAN, phase="Failed", **fields)


def spend(pods, status=None, now=NOW, settings=PRICED, **spec):
    finetunejob = build_finetunejob(status or {}, **spec)
    job = parse_finetunejob(finetunejob)
    decided = decide_plan(job, settings, ContainerLayout())
    return decide_spend(build_snapshot(finetunejob, build_workload(), pods, now=now), job, decided)


def test_gpus_count_from_the_node_to_the_end_of_the_pod():
    running = build_pod(RUNNING, name="second", startTime="2026-01-01T11:45:00Z")
    waiting = build_pod(None, name="third", phase="Pending")
    told = spend([ended("2026-01-01T11:30:00Z"), running, waiting], **GPUS)
    assert told == {"gpuHours": 4 * 0.75, "cost": 6.0, "spentUntil": "2026-01-01T12:00:00Z"}


def test_each_second_counts_once_over_all_passes():
    status, pods = {}, [build_pod(RUNNING, startTime=BEGAN)]
    for seconds in (0, 3.7, 11.2, 30, 31, 60.9):
        status |= spend(pods, status, NOW + timedelta(seconds=seconds), **GPUS)
    # What came within ten seconds of a write waits for the next one.
    assert status["spentUntil"] == "2026-01-01T12:01:00Z"
    assert status["gpuHours"] == pytest.approx(4 * (3660 / 3600), abs=1e-3)
    # A pod that ends is counted at once, and only once.
    over = [ended("2026-01-01T12:01:04Z")]
    status |= spend(over, status, NOW + timedelta(seconds=65), **GPUS)
    assert status["gpuHours"] == pytest.approx(4 * (3664 / 3600), abs=1e-3)
    before = dict(status)
    status |= spend(over, status, NOW + timedelta(seconds=500), **GPUS)
    assert status == before
    assert status["cost"] == pytest.approx(2 * status["gpuHours"], abs=1e-3)


def test_the_price_is_that_of_product_and_market():
    spec = {"resources": {"gpu": {"count": 1, "product": "A100"}}, "spot": {"enabled": True}}
    pods = [build_pod(RUNNING, startTime=BEGAN)]
    assert spend(pods, {"market": "spot"}, **spec)["cost"] == 1.5
    assert spend(pods, {"market": "on-demand"}, **spec)["cost"] == 4.0
    assert "cost" not in spend(pods, settings=Settings(), **spec)
    assert spend(pods, resources={"gpu": {"count": 0}}) == {}


def test_a_cost_that_nobody_knows_is_refused():
    spec = {"resources": {"gpu": {"product": "H100"}}, "budget": {"maxCost": 100}}
    job = parse_finetunejob(build_finetunejob(**spec))
    (problem,) = find_unpriced(job, PRICED)
    assert str(problem) == (
        "spec.budget.maxCost: 100.0: the platform has no price for GPU product H100; "
        "have H100 added to settings.gpuPrices, or use maxGpuHours"
    )
    assert not find_unpriced(parse_finetunejob(build_finetunejob(budget={"maxCost": 100})), PRICED)


def overspent(**budget):
    return build_finetunejob(
        {"gpuHours": 100.2, "cost": 50.0, "spentUntil": "2026-01-01T12:00:00Z", "phase": "Running", "message": ""},
        budget=budget,
    )


def rendered(finetunejob):
    job, settings, layout = parse_finetunejob(finetunejob), Settings(), ContainerLayout()
    return build_manifests(job, decide_plan(job, settings, layout), settings, layout, read_run_state(finetunejob))


def test_a_used_up_budget_suspends_until_it_is_raised():
    finetunejob = overspent(maxGpuHours=100)
    snapshot = build_snapshot(finetunejob, build_workload(), [build_pod(RUNNING)])
    assert decide_failure(snapshot) is None
    assert decide_intent(snapshot, rendered(finetunejob)).workload_patch == {"suspend": True}
    stage, status = status_of(build_snapshot(finetunejob, build_workload(suspend=True), []))
    assert (stage.phase, stage.reason) == (Phase.SUSPENDED, Reason.BUDGET_EXCEEDED)
    assert stage.message == (
        "Used 100.2 GPU hours; budget.maxGpuHours allows 100. Raise it to go on from the last checkpoint."
    )
    (event,) = [each for each in decide_events(stage, finetunejob["status"], status) if each.reason == stage.reason]
    assert event.type == "Warning"
    raised = overspent(maxGpuHours=200)
    held = build_snapshot(raised, build_workload(suspend=True), [])
    assert decide_intent(held, rendered(raised)).workload_patch == {"suspend": False}


def test_or_it_ends_the_job():
    finetunejob = overspent(maxCost=50, onExceeded="fail")
    failure = decide_failure(build_snapshot(finetunejob, build_workload(), [build_pod(RUNNING)]))
    assert failure is not None and (failure.phase, failure.reason) == (Phase.FAILED, Reason.BUDGET_EXCEEDED)
    assert failure.message == "Used 50; budget.maxCost allows 50."
    _, manifests = decide(finetunejob)
    snapshot = build_snapshot(finetunejob, build_workload(), [build_pod(RUNNING)])
    assert decide_intent(snapshot, manifests, has_failed=True).workload_patch == {"suspend": True}


def test_a_workload_that_is_kueues_stays_stopped_too():
    finetunejob = overspent(maxGpuHours=100)
    finetunejob["spec"]["resources"] = {"queueName": "team"}
    snapshot = build_snapshot(finetunejob, build_workload(), [build_pod(RUNNING)])
    assert decide_intent(snapshot, rendered(finetunejob)).workload_patch == {"suspend": True}
