"""Ends of jobs are counted from 0 on, once each."""

import pytest

from finetune_api.names import Phase
from finetune_operator.telemetry import PREFIX, Telemetry


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def ends(telemetry: Telemetry) -> dict[str, float]:
    """Phase -> jobs that ended in it, as Prometheus gets it."""
    (family,) = (family for family in telemetry.registry.collect() if family.name == f"{PREFIX}_jobs_finished")
    return {sample.labels["phase"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


def test_both_ends_are_told_before_the_first(telemetry: Telemetry) -> None:
    """Else `increase()` sees no step up at the first failure."""
    assert ends(telemetry) == {Phase.SUCCEEDED: 0, Phase.FAILED: 0}


@pytest.mark.parametrize("end", [Phase.SUCCEEDED, Phase.FAILED])
@pytest.mark.parametrize("before", [None, Phase.PENDING, Phase.RUNNING])
def test_the_step_into_the_end_counts(telemetry: Telemetry, before: str | None, end: str) -> None:
    telemetry.count_end(before, end)
    telemetry.count_end(end, end)  # another status of the ended job
    assert {phase for phase, count in ends(telemetry).items() if count} == {end}
    assert ends(telemetry)[end] == 1


def test_other_steps_do_not(telemetry: Telemetry) -> None:
    telemetry.count_end(None, Phase.PENDING)
    telemetry.count_end(Phase.PENDING, Phase.RUNNING)
    telemetry.count_end(Phase.FAILED, Phase.PENDING)  # its spec was changed: it starts anew
    assert set(ends(telemetry).values()) == {0}
