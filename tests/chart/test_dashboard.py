"""The dashboard shows every series there is, by queries that Prometheus can parse."""

import json
import re
from pathlib import Path

import yaml

from finetune_api import metrics
from tests.chart.chart import CHART, find, render
from tests.chart.dashboard import DASHBOARD, fill_in, load_queries
from tests.chart.programs import run_program

RULES = CHART / "rules" / "finetune.yaml"


def test_queries_are_valid(tmp_path: Path):
    rules = []
    for number, (_, _, expression) in enumerate(load_queries()):
        filled = fill_in(expression, job="bot|other")
        assert "$" not in filled.replace('"$1"', "")
        rules.append({"record": f"panel:{number}", "expr": filled})
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    print(run_program("promtool", "check", "rules", path))


def test_every_series_of_the_trainer_is_shown_or_watched():
    used = " ".join(expression for _, _, expression in load_queries()) + RULES.read_text()
    assert [metric.name for metric in metrics.ALL if not re.search(rf"\b{metric.name}\b", used)] == []


def test_panels_have_what_grafana_needs():
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    letters = [(title, letter) for title, letter, _ in load_queries()]
    assert all(letter for _, letter in letters)
    for panel in panels:
        assert panel["type"] == "row" or panel["description"], panel["title"]
        names = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(names)) == len(names), panel["title"]
        assert {target["datasource"]["uid"] for target in panel.get("targets", [])} <= {"${datasource}"}
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "namespace", "job"]


def test_the_chart_installs_it_for_grafanas_sidecar():
    found = find(render("--set", "monitoring.dashboards.enabled=true"), "ConfigMap", "finetune-operator-finetune-jobs")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["finetune-jobs.json"]) == json.loads(DASHBOARD.read_text())
