"""Each alert fires on what it is for, and none on a healthy run: by Prometheus's own rule engine."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from finetune_api import metrics
from finetune_api.metrics import Metric
from finetune_api.names import Phase
from tests.chart.chart import CHART, find, render
from tests.chart.programs import run_program
from tools.chart.series import DCGM_MEMORY_FREE, DCGM_MEMORY_USED, DCGM_UTILISATION, operator_metric

RULES = CHART / "rules" / "finetune.yaml"
JOB = {"namespace": "team", "job": "bot", "pod": "bot-x"}
LEADER, STANDBY = {"namespace": "system", "pod": "operator-a"}, {"namespace": "system", "pod": "operator-b"}
# As Prometheus stores the DCGM exporter's series without honorLabels: pod is the exporter's own.
GPU = {"namespace": "gpu-operator", "pod": "dcgm-1", "exported_namespace": "team", "exported_pod": "bot-x", "gpu": "0"}
PASSES = operator_metric("reconcile_duration_seconds")

Series = dict[str, str]
"""Series -> values by minute, in promtool's notation."""
Tests = dict[str, tuple[Series, list[tuple[int, dict[str, str] | None]]]]
"""Title -> what is other than in HEALTHY, and at which minutes which labels of the firing alert (None: none fires)."""


def name(metric: Metric | str, **labels: str) -> str:
    """A series as Prometheus writes it."""
    return f"{metric if isinstance(metric, str) else metric.name}{{{','.join(f'{k}={json.dumps(v)}' for k, v in labels.items())}}}"


def of_job(metric: Metric) -> str:
    return name(metric, **JOB, rank="0", instance="10.0.0.1:8000")


def device(metric: Metric) -> str:
    """Of the second GPU of the pod."""
    return name(metric, **JOB, rank="1", instance="10.0.0.1:8000")


def failed(labels: dict[str, str]) -> str:
    return name(operator_metric("jobs_finished", "_total"), **labels, phase=Phase.FAILED)


def passes(seconds: str, each_minute: int) -> Series:
    """A histogram of passes that all took at most so long."""
    labels = LEADER | {"result": "done"}
    return {
        name(f"{PASSES}_bucket", **labels, le="1"): f"0+{each_minute if float(seconds) <= 1 else 0}x300",
        name(f"{PASSES}_bucket", **labels, le="10"): f"0+{each_minute}x300",
        name(f"{PASSES}_bucket", **labels, le="+Inf"): f"0+{each_minute}x300",
        name(f"{PASSES}_count", **labels): f"0+{each_minute}x300",
    }


HEALTHY: Series = {
    of_job(metrics.STEP): "1+10x300",
    of_job(metrics.PROGRESS): "0.0+0.001x300",
    of_job(metrics.LOSS): "3-0.004x300",
    of_job(metrics.EVAL_LOSS): "3-0.003x300",
    of_job(metrics.LEARNING_RATE): "0.0002+0x300",
    of_job(metrics.GRAD_NORM): "1+0x300",
    of_job(metrics.TOKENS_PER_SECOND): "1000+0x300",
    name(DCGM_UTILISATION, **GPU): "95+0x300",
    name(DCGM_MEMORY_USED, **GPU): "60000+0x300",
    name(DCGM_MEMORY_FREE, **GPU): "20000+0x300",
    device(metrics.GPU_UTILIZATION): "0.95+0x300",
    device(metrics.GPU_DEVICE_MEMORY_USED): "60+0x300",
    device(metrics.GPU_DEVICE_MEMORY_TOTAL): "100+0x300",
    name(operator_metric("leader"), **LEADER): "1+0x300",
    name(operator_metric("leader"), **STANDBY): "0+0x300",
    failed(LEADER): "3+0x300",
    name(operator_metric("queue_depth"), **LEADER): "0 3 0 2 0 0 1 0 0 0+0x290",
    # What is due piles up where nobody works.
    name(operator_metric("queue_depth"), **STANDBY): "0+1x300",
    name(operator_metric("reconcile_errors", "_total"), **LEADER): "0+1x300",
    **passes("0.5", 60),
}
"""A run of 300 minutes in a healthy cluster."""

GONE = "_x300"
OF_DCGM = (DCGM_UTILISATION, DCGM_MEMORY_USED, DCGM_MEMORY_FREE)
WITHOUT_DCGM: Series = {name(series, **GPU): GONE for series in OF_DCGM}
WITHOUT_NVML: Series = {
    device(metric): GONE
    for metric in (metrics.GPU_UTILIZATION, metrics.GPU_DEVICE_MEMORY_USED, metrics.GPU_DEVICE_MEMORY_TOTAL)
}
HONOURED = {"namespace": "team", "pod": "bot-x", "gpu": "0"}
"""As Prometheus stores the DCGM exporter's series with honorLabels."""


class Case(NamedTuple):
    """What is other than in HEALTHY, and when the alert is to be seen."""

    alert: str
    changes: Series
    minute: int = 200
    labels: dict[str, str] = JOB | {"rank": "0"}


CASES = [
    Case("FineTuneLossNotANumber", {of_job(metrics.LOSS): "3+0x195 NaN+0x100"}),
    Case("FineTuneLossNotANumber", {of_job(metrics.EVAL_LOSS): "3+0x195 Inf+0x100"}),
    Case("FineTuneLossAbsent", {of_job(metrics.LOSS): GONE}),
    Case("FineTuneLossStagnant", {of_job(metrics.LOSS): "2+0x300"}),
    Case("FineTuneEvalLossRising", {of_job(metrics.EVAL_LOSS): "2+0.001x300"}),
    Case("FineTuneLearningRateZero", {of_job(metrics.LEARNING_RATE): "0+0x300"}),
    Case("FineTuneGradientNormHigh", {of_job(metrics.GRAD_NORM): "1+0x180 11+0x100"}),
    Case("FineTuneGradientNormHigh", {of_job(metrics.GRAD_NORM): "1+0x180 Inf+0x100"}),
    Case("FineTuneNoProgress", {of_job(metrics.STEP): "1+10x100 1001+0x200", of_job(metrics.PROGRESS): "0+0.001x100 0.1+0x200"}),
    Case(
        "FineTuneNeverStarted",
        {of_job(metric): "0+0x300" for metric in (metrics.STEP, metrics.PROGRESS)}
        | {of_job(metric): GONE for metric in (metrics.LOSS, metrics.EVAL_LOSS, metrics.LEARNING_RATE, metrics.GRAD_NORM)}
        | {of_job(metrics.TOKENS_PER_SECOND): GONE, name(DCGM_UTILISATION, **GPU): "0+0x300"},
        minute=130,
    ),
    Case("FineTuneThroughputDrop", {of_job(metrics.TOKENS_PER_SECOND): "1000+0x180 780+0x100"}),
    Case("FineTuneGpuIdle", {name(DCGM_UTILISATION, **GPU): "95+0x180 49+0x100"}, labels=JOB),
    Case("FineTuneGpuMemoryFull", {name(DCGM_MEMORY_USED, **GPU): "79000+0x300", name(DCGM_MEMORY_FREE, **GPU): "1000+0x300"}, labels=JOB),
    Case("FineTuneGpuIdle", WITHOUT_NVML | {name(DCGM_UTILISATION, **GPU): "95+0x180 49+0x100"}, labels=JOB),
    Case("FineTuneGpuIdle", WITHOUT_DCGM | {name(DCGM_UTILISATION, **HONOURED): "95+0x180 49+0x100"}, labels=JOB),
    Case("FineTuneGpuIdle", WITHOUT_DCGM | {device(metrics.GPU_UTILIZATION): "0.95+0x180 0.49+0x100"}, labels=JOB),
    Case("FineTuneGpuMemoryFull", WITHOUT_DCGM | {device(metrics.GPU_DEVICE_MEMORY_USED): "96+0x300"}, labels=JOB),
    Case("FineTuneJobFailed", {failed(LEADER): "3+0x195 4+0x100"}, labels={"namespace": "system"}),
    Case("FineTuneJobFailed", {failed(LEADER): "0+0x195 1+0x100"}, labels={"namespace": "system"}),
    Case("FineTuneJobFailed", {failed(LEADER): "3+0x195 stale", failed(STANDBY): "0+0x197 1+0x100"}, labels={"namespace": "system"}),
    Case(
        "FineTuneOperatorDown",
        {series: GONE for series in HEALTHY if series.startswith("finetune_operator")},
        labels={},
    ),
    Case(
        "FineTuneOperatorNoLeader",
        {name(operator_metric("leader"), **LEADER): "0+0x300", failed(LEADER): GONE},
        labels={"namespace": "system"},
    ),
    Case("FineTuneOperatorErrors", {name(operator_metric("reconcile_errors", "_total"), **LEADER): "0+7x300"}, labels={"namespace": "system"}),
    Case("FineTuneOperatorSlow", passes("6", 60), labels={"namespace": "system"}),
    Case("FineTuneOperatorQueueStuck", {name(operator_metric("queue_depth"), **LEADER): "5+0x300"}, labels=LEADER),
]  # fmt: skip

ALWAYS = (5, 60, 130, 196, 203, 290)

CALM: dict[str, tuple[Series, tuple[int, ...]]] = {
    "healthy": ({}, ALWAYS),
    "a leader that starts anew": ({failed(LEADER): "3+0x195 0+0x100"}, (198, 203, 206, 207, 290)),
    "finished, evaluating and exporting": (
        {
            of_job(metrics.PROGRESS): "1+0x300",
            of_job(metrics.STEP): "1000+0x300",
            of_job(metrics.LEARNING_RATE): "0+0x300",
            name(DCGM_UTILISATION, **GPU): "0+0x300",
        },
        ALWAYS,
    ),
    "GPU of nobody idle and full": (
        {
            name(DCGM_UTILISATION, namespace="gpu-operator", pod="dcgm-1", gpu="1"): "0+0x300",
            name(DCGM_MEMORY_USED, namespace="gpu-operator", pod="dcgm-1", gpu="1"): "79900+0x300",
            name(DCGM_MEMORY_FREE, namespace="gpu-operator", pod="dcgm-1", gpu="1"): "100+0x300",
        },
        ALWAYS,
    ),
    "DCGM's exporter is believed rather than NVML": (
        {device(metrics.GPU_UTILIZATION): "0+0x300", device(metrics.GPU_DEVICE_MEMORY_USED): "99+0x300"},
        ALWAYS,
    ),
    "without DCGM's exporter": (WITHOUT_DCGM, ALWAYS),
    "with DCGM's exporter alone": (WITHOUT_NVML, ALWAYS),
    "without GPU": (WITHOUT_DCGM | WITHOUT_NVML, ALWAYS),
}
"""What no alert shall fire on, and the minutes looked at."""


def write_test(tests: Tests, folder: Path) -> Path:
    """promtool's file."""
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "name": title,
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values} for series, values in (HEALTHY | changes).items()
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname, namespace, job, pod, rank) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{minute}m",
                        "exp_samples": [] if labels is None else [{"labels": name("", **labels), "value": 1}],
                    }
                    for minute, labels in moments
                ],
            }
            for title, (changes, moments) in tests.items()
        ],
    }
    path = folder / "alerts.test.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_rules_are_valid():
    print(run_program("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES))


def test_each_alert_fires_alone(tmp_path: Path):
    tests: Tests = {
        f"{number} {case.alert}": (case.changes, [(case.minute, {"alertname": case.alert} | case.labels)])
        for number, case in enumerate(CASES)
    }
    print(run_program("promtool", "test", "rules", write_test(tests, tmp_path)))


def test_none_fires_when_all_is_well(tmp_path: Path):
    tests: Tests = {
        title: (changes, [(minute, None) for minute in minutes]) for title, (changes, minutes) in CALM.items()
    }
    print(run_program("promtool", "test", "rules", write_test(tests, tmp_path)))


def test_every_alert_has_a_case_and_says_what_to_do():
    alerts = {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    assert alerts.keys() == {case.alert for case in CASES}
    for alert in alerts.values():
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}
        assert alert["labels"]["severity"] in ("critical", "warning", "info")


def test_a_wrong_rule_fails_the_test(tmp_path: Path):
    """So that the two tests above can fail."""
    case = CASES[0]
    tests: Tests = {"quiet": (case.changes, [(case.minute, None)])}
    with pytest.raises(Exception, match="non-zero exit status"):
        run_program("promtool", "test", "rules", write_test(tests, tmp_path))


def test_the_chart_installs_these_rules():
    rule = find(render("--set", "monitoring.rules.enabled=true"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text())
