"""Dashboards and rules speak of what the relay measures: nothing that it does not, and all that it does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana import build
from grafana import panels as panels_py
from relay.metrics import Metrics
from relay.protocol.errors import ApiError, BadRequest, Unavailable

ROOT = Path(__file__).resolve().parents[2]
BOARDS: dict[str, Any] = {name: json.loads((ROOT / "grafana" / name).read_text()) for name in build.BOARDS}
RULES = [
    rule
    for path in sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RUNBOOK = (ROOT / "deploy" / "prometheus" / "RUNBOOK.md").read_text()
README = (ROOT / "grafana" / "README.md").read_text()


def panels(board: Any) -> list[Any]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def board_expressions() -> list[str]:
    return [
        target["expr"] for board in BOARDS.values() for panel in panels(board) for target in panel.get("targets", [])
    ]


def names(expression: str) -> set[str]:
    """The relay's and its process's series that an expression reads, and those of recording rules (with a colon)."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    words = re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*", bare)
    return {word for word in words if ":" in word.strip(":") or word.startswith(("relay_", "process_"))}


def series_of_the_relay() -> dict[str, set[str]]:
    """For each metric the names of its series."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name: {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
        for family in Metrics().registry.collect()
    }


def test_the_json_is_what_the_code_says() -> None:
    assert build.differing() == []
    assert build.main(["--check"]) == 0


def test_a_file_that_differs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in build.render().items():
        (tmp_path / name).write_text(content)
    (tmp_path / "relay.json").write_text("{}")
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build.differing() == ["relay.json"]
    assert build.main(["--check"]) == 1
    assert build.main([]) == 0
    assert build.differing() == []


def test_uids_stay() -> None:
    """Links and bookmarks hold them."""
    assert {name: board["uid"] for name, board in BOARDS.items()} == {
        "relay.json": "relay-on-call",
        "streams.json": "relay-streams",
    }


@pytest.mark.parametrize("expression", [*board_expressions(), *(rule["expr"] for rule in RULES)])
def test_every_series_named_exists(expression: str) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    measured = set().union(*series_of_the_relay().values())
    assert names(expression) <= recorded | measured


def test_every_metric_of_the_relay_is_on_a_dashboard() -> None:
    shown = set().union(*map(names, board_expressions()))
    metrics = {name: series for name, series in series_of_the_relay().items() if name.startswith("relay_")}
    assert len(metrics) > 20
    assert {name for name, series in metrics.items() if not series & shown} == set()


def test_dashboards_need_no_recording_rules() -> None:
    assert [expression for expression in board_expressions() if any(":" in name for name in names(expression))] == []


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_to_do_and_asks_the_chosen_source(name: str) -> None:
    board = BOARDS[name]
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    for panel in panels(board):
        if panel["type"] == "text":
            continue
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        for target in panel["targets"]:
            assert 'namespace=~"$namespace"' in target["expr"], panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_variables_match_series_without_their_label(name: str) -> None:
    variables = {variable["name"]: variable for variable in BOARDS[name]["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "api", "upstream", "model"]
    for variable in list(variables.values())[1:]:
        assert (variable["allValue"], variable["includeAll"], variable["multi"]) == (".*", True, True)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_their_rows_and_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    bottom = max(y for _, y in taken) + 1
    assert len(taken) == 24 * bottom, "a hole in the grid"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_what_the_person_woken_needs(rule: Any) -> None:
    assert rule["for"]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook"} <= rule["annotations"].keys()
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (ROOT / path).exists()
    assert anchor == rule["alert"].lower()
    assert f"\n## {rule['alert']}\n" in RUNBOOK


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    headings = re.findall(r"^## (Relay\w+)$", RUNBOOK, re.MULTILINE)
    assert headings == [rule["alert"] for rule in ALERTS]


def test_a_miss_is_the_same_to_dashboards_and_rules() -> None:
    codes = {
        error.code for error in ApiError.__subclasses__() + Unavailable.__subclasses__() + BadRequest.__subclasses__()
    }
    assert set(panels_py.MISSED.split("|")) <= codes
    (ratio,) = (rule["expr"] for rule in RULES if rule.get("record") == "namespace:relay_resumes_missed:ratio_rate15m")
    (guard,) = (rule["expr"] for rule in ALERTS if rule["alert"] == "RelayResumeMisses")
    whole = f'relay_resumes_total{{result=~"{panels_py.FOUND}|{panels_py.MISSED}"}}'
    assert whole in ratio
    assert whole in guard
    assert f'relay_resumes_total{{result=~"{panels_py.MISSED}"}}' in ratio


def test_documents_name_only_series_that_exist() -> None:
    known = set().union(*series_of_the_relay().values(), series_of_the_relay().keys())
    for text in (RUNBOOK, README):
        assert set(re.findall(r"\brelay_[a-z_]*[a-z]\b", text)) <= known
