"""The dashboard of nights and the documentation name all metrics that there are, and no other."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from ssray.cluster.night_metrics import METRICS

DASHBOARD = json.loads((files("ssray.cluster") / "night_dashboard.json").read_text("utf-8"))
ROOT = Path(__file__).parents[3]
NAME = re.compile(r"ray_ssray_\w+")
SELECTED = re.compile(r"(ray_ssray_\w+)\{([^}]*)\}")
GROUPED = re.compile(r"\b(?:by|ignoring) \(([^)]*)\)")
EXPRESSIONS = [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
]
TAGS = {name: set(metric.tags) for metric in METRICS for name in metric.exposed}


def test_each_metric_that_a_panel_asks_for_exists() -> None:
    asked = [NAME.findall(expression) for expression in EXPRESSIONS]
    assert all(asked)
    assert {name for names in asked for name in names} <= set(TAGS)


def test_each_metric_is_on_a_panel() -> None:
    shown = set(NAME.findall(" ".join(EXPRESSIONS)))
    assert [metric.name for metric in METRICS if not metric.exposed & shown] == []


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_panels_select_and_group_by_tags_that_the_metrics_have(expression: str) -> None:
    selected = SELECTED.findall(expression)
    assert [name for name, _ in selected] == NAME.findall(expression)
    for name, selector in selected:
        assert {each.split("=")[0].strip() for each in selector.split(",")} <= TAGS[name]
    tags = set.union(*(TAGS[name] for name, _ in selected)) | {"le"}
    for group in GROUPED.findall(expression):
        assert {each.strip() for each in group.split(",")} <= tags


def test_the_choices_above_the_panels_ask_for_tags_that_there_are() -> None:
    choices = {each["name"]: each["query"] for each in DASHBOARD["templating"]["list"]}
    asked = dict[str, Any]()
    for name in ("night", "category"):
        query = choices.pop(name)["query"]
        asked[name] = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert asked[name], query
        assert asked[name][2] == name
        assert name in TAGS[asked[name][1]]
    assert choices == {"datasource": "prometheus"}
    used = set(re.findall(r"\$(\w+)", " ".join(EXPRESSIONS))) - {"__range"}
    assert used == {"night", "category"}


def test_panels_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        rows = range(place["y"], place["y"] + place["h"])
        cells = {(column, row) for column in columns for row in rows}
        assert columns.stop <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_documentation_names_every_metric_and_no_other() -> None:
    text = (ROOT / "docs/how-to/nightly.md").read_text("utf-8")
    told = set(NAME.findall(text))
    assert told <= set(TAGS)
    assert [metric.name for metric in METRICS if not metric.exposed & told] == []
