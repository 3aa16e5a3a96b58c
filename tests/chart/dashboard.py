"""The queries of the chart's dashboard."""

import json

from tests.chart.chart import CHART, Object

DASHBOARD = CHART / "dashboards" / "finetune-jobs.json"


def load_queries() -> list[tuple[str, str, str]]:
    """(title of the panel, letter, expression)."""
    panels: list[Object] = json.loads(DASHBOARD.read_text())["panels"]
    return [(p["title"], target["refId"], target["expr"]) for p in panels for target in p.get("targets", [])]


def fill_in(expression: str, namespace: str = ".*", job: str = ".*", rate_interval: str = "2m") -> str:
    """An expression with the values of Grafana's variables."""
    values = {"$namespace": namespace, "$job": job, "$__rate_interval": rate_interval}
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    return expression
