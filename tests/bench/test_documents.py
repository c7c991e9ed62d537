"""The comparison's tables say what the results say, and the document names every mode of the command."""

from __future__ import annotations

import argparse
import copy
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from relay import bench
from relay.bench import figures
from relay.bench.measure import BenchError

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_DOCUMENT = (_DEPLOY / "BENCHMARKS.md").read_text()


@pytest.fixture(scope="module")
def render() -> ModuleType:
    return _module("render")


def _module(name: str) -> ModuleType:
    """Of deploy/bench, which is no package: its modules import each other by their plain names."""
    sys.path.insert(0, str(_DEPLOY / "bench"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def _target(cpu: float, added: float) -> dict[str, Any]:
    times = ("delay_us", "first_us", "first_byte_us", "whole_us")
    window = {"events": 1000, "seconds": 1.0, "cpu": cpu / 1000, "store_cpu": None}
    answer = {
        **{name: {str(int(added * 1000)): 1} for name in times},
        **dict.fromkeys(("events", "expected", "streams", "body_bytes"), 1000),
        **{"errors": {}, "samples": [], "whole": {**window, "generator_cpu": 0.1, "upstream_cpu": 0.1}},
    }
    return figures.summary("paced", [answer])


def _found(relay: float, nginx: float) -> dict[str, Any]:
    targets = {"direct": _target(1, 0.1), "relay": _target(relay, 2.0), "nginx": _target(nginx, 0.2)}
    figures.add_difference(targets["relay"], targets["direct"])
    return {
        "date": "2001-02-03",
        "machine": {"cores": 2, "cpu": "CPU", "system": "Linux", "python": "3", "uvloop": "1", "relay": "0"},
        "cores": {"target": 1, "load": 0, "store": 0},
        **{"load_average": 0.1, "seconds": 90.0},
        "versions": {"nginx": "9.9"},
        "disclosed": {"nginx": "As it is."},
        "rows": {"cpu_300": {"plan": {"streams": 300}, "targets": targets, "warnings": ["busy"]}},
    }


def test_a_row_is_met_or_missed_by_its_target(render: ModuleType) -> None:
    assert "| ≤ 2.5 × nginx | 50, 2.5 × nginx (met) | 20 | – | – | – | – |" in render.tables(_found(50, 20))
    assert "| ≤ 2.5 × nginx | 51, 2.5 × nginx (**missed**) | 20 |" in render.tables(_found(51, 20))


def test_what_is_missed_stands_with_its_figure_its_ratio_and_its_reason(render: ModuleType) -> None:
    assert "Every target is met." in render.tables(_found(50, 20))
    behind = render.tables(_found(60, 20)).partition("Where Relay is behind")[2]
    line = next(line for line in behind.splitlines() if line.startswith("| CPU per event"))
    reason = _module("reasons").REASONS["cpu"]
    assert line.endswith(f"| ≤ 2.5 × nginx | 60, 3.0 × nginx | 1.2 | {reason} |")


@pytest.mark.parametrize(
    ("value", "at_least", "met", "ratio"), [(2.0, False, True, 0.5), (8.0, False, False, 2.0), (2.0, True, False, 2.0)]
)
def test_ratios(render: ModuleType, value: float, at_least: bool, met: bool, ratio: float) -> None:
    row = render.Row("what", "target", {}, value, 4.0, at_least)
    assert (row.met, row.ratio) == (met, ratio)
    assert render.Row("what", "target", {}).met is None


def test_every_row_with_a_target_has_a_reason_and_every_reason_a_row() -> None:
    used = set(re.findall(r'why="(\w+)"', (_DEPLOY / "bench/render.py").read_text()))
    assert used == set(_module("reasons").REASONS)


def test_a_run_beside_others_does_not_call_the_machine_quiet(render: ModuleType) -> None:
    found = _found(50, 20)
    assert "others used 0% of a core at most: the machine was quiet" in render.tables(found)
    found["rows"]["cpu_300"]["targets"]["nginx"]["others_share"] = 0.3
    assert "in 1 of 1 rows (cpu_300 30%): **the machine was not quiet**" in render.tables(found)
    found = _found(50, 20) | {"load_average": 2.0}
    assert "Load average before the run: 2.00; nothing else since: **the machine was not quiet**" in render.tables(
        found
    )


def test_rows_that_were_not_measured_are_left_out(render: ModuleType) -> None:
    lines = render.tables(_found(50, 20)).splitlines()
    assert len([line for line in lines if line.startswith("| ") and "---" not in line]) == 2


def test_losses_are_told(render: ModuleType) -> None:
    found = _found(50, 20)
    assert not render.lost(found)
    assert "twice: none." in render.tables(found)
    found["rows"]["cpu_300"]["targets"]["relay"]["errors"]["missing"] = 2
    assert render.lost(found)
    assert "twice: Relay 2." in render.tables(found)


def test_results_go_between_the_markers_and_nowhere_else(render: ModuleType) -> None:
    once = render.into(_DOCUMENT, _found(60, 20))
    before, _, rest = _DOCUMENT.partition("<!-- results -->")
    after = rest.partition("<!-- /results -->")[2]
    assert once.startswith(before)
    assert once.endswith(after)
    assert "2001-02-03" in once
    assert render.into(once, copy.deepcopy(_found(60, 20))) == once
    with pytest.raises(BenchError, match="markers"):
        render.into("# Benchmarks", _found(60, 20))


def _plan_of(**changes: float) -> dict[str, Any]:
    """The rows that a plan needs; one by one a cost is changed."""
    known = {"event": 60.0, "store": 30.0, "begin": 3.0, "store_begin": 0.3, "live": 50.0, "ratio": 1.0, **changes}
    relay = {
        "cpu_us_per_event": known["event"],
        "store_cpu_us_per_event": known["store"],
        "cpu_ms_per_stream": known["begin"],
        "store_cpu_ms_per_stream": known["store_begin"],
        "memory": {"rss": known["live"] * 1024},
    }
    rows: dict[str, Any] = {row: {"targets": {"relay": relay}} for row in ("cpu_300", "begin", "idle")}
    return {"rows": {**rows, "store": {"ratio": known["ratio"]}}}


def test_the_plan_is_the_figures_in_the_formulas() -> None:
    capacity = _module("capacity")
    plan = capacity.plan(capacity.costs(_plan_of()["rows"]))
    # 1,000 streams: 20,000 events a second are 1.2 cores, 33 begun a second 0.1; 60 % busy they are 2.2.
    assert "| (S·r·60 µs + S/T·3.0 ms) / 0.6 | 3 | 22 | 217 | 2,200 |" in plan
    assert "| S·(50 KiB + E/2·1.2 KB) | 0.4 GB | 4.1 GB | 41 GB | 411 GB |" in plan
    assert "| S·(1 + R/T)·E·(b + 35)·1.00 | 25 GB |" in plan
    assert "each with 461 streams" in " ".join(plan.split())


@pytest.mark.parametrize("cost", ["event", "store", "begin", "store_begin", "live", "ratio"])
def test_each_cost_is_in_the_plan(cost: str) -> None:
    capacity = _module("capacity")
    plans = [capacity.plan(capacity.costs(_plan_of(**changed)["rows"])) for changed in ({}, {cost: 100.0})]
    assert plans[0] != plans[1]


def test_the_plan_goes_between_its_markers_and_stays_where_a_row_is_missing() -> None:
    capacity = _module("capacity")
    document = (_DEPLOY / "README.md").read_text()
    assert "S·r·60 µs" in capacity.into(document, _plan_of())
    without = _plan_of()
    del without["rows"]["begin"]
    assert capacity.into(document, without) == document


def test_every_mode_is_documented() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    modes = next(group for group in parser._action_groups if (group.title or "").startswith("the mode"))
    flags = {action.option_strings[0] for action in modes._group_actions}
    assert flags
    assert {flag for flag in flags if f"| `{flag}" not in _DOCUMENT} == set()
