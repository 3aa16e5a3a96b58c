"""The Grafana dashboard of FineTuneJobs."""

import json
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableHide,
    VariableRefresh,
    VariableSort,
)

from finetune_api import metrics
from finetune_api.metrics import Metric
from tools.chart.series import (
    JOB,
    gpu_memory_used,
    gpu_power,
    gpu_utilisation,
    operator_metric,
    select,
)

SELECTED = 'namespace=~"$namespace", job=~"$job"'
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
PER_JOB = "{{namespace}}/{{job}}"
INTERVAL = "[$__rate_interval]"

Query = tuple[str, str]
"""(expression, legend)."""
Panel = TypeVar("Panel", timeseries.Panel, stat.Panel)


def _query(query: Query) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query[0]).legend_format(query[1]).datasource(SOURCE).range()


def _fill(panel: Panel, title: str, description: str, unit: str, *queries: Query) -> Panel:
    panel = panel.title(title).description(description).datasource(SOURCE).unit(unit)
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(_query(query).ref_id(letter))
    return panel


def _graph(title: str, description: str, unit: str, *queries: Query, width: int = 8) -> timeseries.Panel:
    return (
        _fill(timeseries.Panel(), title, description, unit, *queries)
        .span(width)
        .height(8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "min", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )


def _number(title: str, description: str, unit: str, query: Query) -> stat.Panel:
    return (
        _fill(stat.Panel(), title, description, unit, query)
        .span(6)
        .height(5)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _series(metric: Metric, legend: str = PER_JOB) -> Query:
    return select(metric, SELECTED), legend


def _metric_graph(title: str, metric: Metric, unit: str) -> timeseries.Panel:
    return _graph(title, metric.description, unit, _series(metric))


def _variable(name: str, label: str, matchers: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({select(metrics.STEP, matchers)}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def build_dashboard() -> str:
    """JSON of the dashboard, as Grafana imports it."""
    pods = f"group by ({JOB}) ({select(metrics.STEP, SELECTED)})"
    seconds = operator_metric("reconcile_duration_seconds", "_bucket")
    quantile = f"histogram_quantile(%s, sum by (le) (rate({seconds}{INTERVAL})))"
    jobs, leader = operator_metric("jobs"), operator_metric("leader")
    requests, errors = operator_metric("api_requests", "_total"), operator_metric("reconcile_errors", "_total")
    builder = (
        dashboard.Dashboard("Fine-tuning jobs")
        .uid("finetune-jobs")
        .description("Training runs of FineTuneJobs, and the operator that runs them.")
        .tags(["finetune", "machine-learning", "generated"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").hide(VariableHide.DONT_HIDE)
        )
        .with_variable(_variable("namespace", "Namespace", ""))
        .with_variable(_variable("job", "FineTuneJob", 'namespace=~"$namespace"'))
        .with_row(dashboard.Row("Overview"))
        .with_panel(_number("Progress", metrics.PROGRESS.description, "percentunit", _series(metrics.PROGRESS)))
        .with_panel(_number("Loss", metrics.LOSS.description, "none", _series(metrics.LOSS)))
        .with_panel(_number("Tokens seen", metrics.TOKENS_SEEN.description, "short", _series(metrics.TOKENS_SEEN)))
        .with_panel(_number("Newest checkpoint", metrics.CHECKPOINT_STEP.description, "none", _series(metrics.CHECKPOINT_STEP)))
        .with_row(dashboard.Row("Learning"))
        .with_panel(
            _graph(
                "Loss and evaluation loss",
                f"{metrics.LOSS.description} {metrics.EVAL_LOSS.description}",
                "none",
                _series(metrics.LOSS, f"{PER_JOB} training"),
                _series(metrics.EVAL_LOSS, f"{PER_JOB} evaluation"),
                width=16,
            )
        )
        .with_panel(
            _graph(
                "Steps",
                "Optimiser steps done, of the whole run, and of the newest checkpoint.",
                "none",
                _series(metrics.STEP, f"{PER_JOB} done"),
                _series(metrics.TOTAL_STEPS, f"{PER_JOB} total"),
                _series(metrics.CHECKPOINT_STEP, f"{PER_JOB} checkpoint"),
            )
        )
        .with_panel(_metric_graph("Learning rate", metrics.LEARNING_RATE, "sci"))
        .with_panel(_metric_graph("Gradient norm", metrics.GRAD_NORM, "none"))
        .with_panel(_metric_graph("Epoch", metrics.EPOCH, "none"))
        .with_row(dashboard.Row("Speed"))
        .with_panel(_metric_graph("Tokens per second", metrics.TOKENS_PER_SECOND, "short"))
        .with_panel(_metric_graph("Step time", metrics.STEP_SECONDS, "s"))
        .with_panel(_metric_graph("Progress", metrics.PROGRESS, "percentunit"))
        .with_row(dashboard.Row("Memory and GPUs"))
        .with_panel(
            _graph(
                "Host memory",
                metrics.HOST_MEMORY.description,
                "bytes",
                _series(metrics.HOST_MEMORY, f"{PER_JOB} now"),
                _series(metrics.HOST_MEMORY_PEAK, f"{PER_JOB} peak"),
                width=6,
            )
        )
        .with_panel(
            _graph(
                "GPU memory",
                f"{metrics.GPU_MEMORY.description} On device: all processes, on the fullest GPU; from the DCGM exporter, else NVML.",
                "bytes",
                _series(metrics.GPU_MEMORY, f"{PER_JOB} allocated"),
                _series(metrics.GPU_MEMORY_PEAK, f"{PER_JOB} allocated, peak"),
                (gpu_memory_used(pods), f"{PER_JOB} on device"),
                width=6,
            )
        )
        .with_panel(
            _graph(
                "GPU utilisation",
                "Mean over the pod's GPUs; from the DCGM exporter, else NVML.",
                "percentunit",
                (gpu_utilisation(pods), PER_JOB),
                width=6,
            )
        )
        .with_panel(
            _graph(
                "GPU power",
                "Of all the pod's GPUs; from the DCGM exporter, else NVML.",
                "watt",
                (gpu_power(pods), PER_JOB),
                width=6,
            )
        )
        .with_row(dashboard.Row("Operator"))
        .with_panel(
            _graph("Jobs by phase", "FineTuneJobs of all namespaces watched.", "none", (f"max by (phase) ({jobs})", "{{phase}}"))
        )
        .with_panel(
            _graph(
                "Reconcile latency",
                "Duration of one reconcile pass.",
                "s",
                (quantile % "0.5", "median"),
                (quantile % "0.95", "95th percentile"),
                (quantile % "0.99", "99th percentile"),
            )
        )
        .with_panel(
            _graph(
                "Queue depth",
                "Keys due and not yet taken, of the leader.",
                "none",
                (f"{operator_metric('queue_depth')} and {leader} == 1", "{{pod}}"),
            )
        )
        .with_panel(
            _graph("Reconcile errors", "Passes that raised, per second.", "ops", (f"sum by (pod) (rate({errors}{INTERVAL}))", "{{pod}}"))
        )
        .with_panel(
            _graph(
                "API requests",
                "Requests to the API server by verb and status, per second.",
                "reqps",
                (f"sum by (verb, code) (rate({requests}{INTERVAL}))", "{{verb}} {{code}}"),
            )
        )
        .with_panel(_graph("Leader", "1 for the replica that holds the Lease.", "none", (leader, "{{pod}}")))
    )  # fmt: skip
    built = builder.build()
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
