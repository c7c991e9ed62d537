"""Beginnings, bursts and fleets: each figure beside that of a gateway with the defect that it is there to show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from relay.bench import procs
from relay.bench.measure import Bench, Plan, Target
from tests.bench.defective import Defects, gateway
from tests.support.processes import RelayProcess, needs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def relay(bench: Bench) -> Iterator[RelayProcess]:
    with RelayProcess({"upstreams": [{"name": "bench", "base_url": bench.upstream_url}]}) as process:
        yield process


def _sound_and_defective(bench: Bench, defects: Defects, **plan: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the same job finds of a gateway without and with the defect."""
    with gateway(bench.upstream_url) as sound, gateway(bench.upstream_url, defects, "defective") as defective:
        found = bench.run(Plan(**{"rounds": 1, "length": 1, **plan}), [sound, defective], direct=False)["targets"]
    assert not any(found["gateway"]["errors"].values()), found["gateway"]["samples"]
    return found["gateway"], found["defective"]


@pytest.mark.parametrize(
    ("plan", "streams"),
    [
        pytest.param({"mode": "begin", "streams": 4, "total": 60, "starts": 100.0}, 64, id="kept connections"),
        pytest.param({"mode": "cold", "streams": 20, "repeats": 2, "settle": 0.1}, 40, id="cold"),
    ],
)
def test_what_a_stream_costs_to_begin_and_end(bench: Bench, plan: dict[str, Any], streams: int) -> None:
    needs(procs.AVAILABLE, "/proc, that is Linux")
    sound, defective = _sound_and_defective(bench, Defects(burn=0.008), **plan)
    assert sound["streams"] == sound["events"] == streams
    assert defective["cpu_ms_per_stream"] - sound["cpu_ms_per_stream"] == pytest.approx(8, abs=4)
    assert sound["store_cpu_ms_per_stream"] is None
    assert defective["first_event_ms"]["p50"] > 8


def test_connections_are_kept_where_the_gateway_keeps_them(bench: Bench, relay: RelayProcess) -> None:
    """One that is closed after each answer is opened anew, and nothing is lost."""
    plan = Plan(mode="begin", streams=2, total=20, length=1, starts=100.0, rounds=1)
    found = bench.run(plan, [Target("relay", relay.url, pids=(relay.pid,))], direct=False)["targets"]["relay"]
    assert (found["streams"], found["errors"]["refused"]) == (22, 0)
    if procs.AVAILABLE:
        assert found["cpu_ms_per_stream"] > 0
        assert found["store_cpu_ms_per_stream"] is not None


def test_what_is_refused_is_told(bench: Bench) -> None:
    _, defective = _sound_and_defective(bench, Defects(refused=5), mode="burst", streams=20, rate=50.0)
    assert defective["errors"]["refused"] == 4


def test_streams_that_run_while_others_begin(bench: Bench) -> None:
    """One after the other they hold the gateway up for a second, and an event that comes then for 50 ms at least."""
    plan: dict[str, Any] = {
        "mode": "beside",
        "streams": 20,
        "running": 10,
        "length": 2,
        "starts": 100.0,
        "ramp": 0.0,
        "settle": 1.0,
    }
    with gateway(bench.upstream_url, Defects(burn=0.05)) as target:
        defective = bench.run(Plan(rounds=1, **plan), [target], direct=False)["targets"]["gateway"]
    assert not any(defective["errors"].values()), defective["samples"]
    assert defective["streams"] == 30
    assert defective["events"] == defective["expected"]
    assert defective["first_event_ms"]["max"] > 1000
    assert defective["meanwhile"]["burst"]["p50"] > 15
    assert defective["meanwhile"]["burst"]["p50"] > defective["meanwhile"]["calm"]["p50"]


def test_what_a_live_idle_stream_holds(bench: Bench) -> None:
    needs(procs.AVAILABLE, "/proc, that is Linux")
    plan = {"mode": "idle", "streams": 30, "length": 2, "settle": 0.2}
    sound, defective = _sound_and_defective(bench, Defects(hold=400_000), **plan)
    assert defective["memory"]["rss"] - sound["memory"]["rss"] == pytest.approx(400_000, rel=0.4)


def test_what_many_streams_leave_behind(bench: Bench) -> None:
    needs(procs.AVAILABLE, "/proc, that is Linux")
    plan = {"mode": "churn", "streams": 5, "total": 100, "settle": 0.0}
    _, defective = _sound_and_defective(bench, Defects(leak=200_000), **plan)
    steps = [step["memory"]["rss"] for step in defective["memory"]]
    assert steps[-1] - steps[0] > 0.8 * 90 * 200_000


def test_a_fleet_that_comes_back(bench: Bench, relay: RelayProcess) -> None:
    plan = Plan(mode="resume", streams=12, length=1000, total=12, repeats=2, rounds=1)
    with (
        gateway(relay.url, name="sound") as sound,
        gateway(relay.url, Defects(cut=25), "defective") as defective,
    ):
        found = bench.run(plan, [sound, defective], direct=False)["targets"]
    assert (found["sound"]["together"]["readers"], found["sound"]["together"]["errors"]) == (12, 0)
    assert found["sound"]["streams"] == 12 + 2 + 12
    # Behind ten for the warm-up, twelve that are made and two that come back alone, it is the first of those together.
    assert found["defective"]["together"]["errors"] > 0
    assert found["defective"]["errors"]["wrong_end"] == 1


def test_what_each_worker_has_taken(bench: Bench) -> None:
    needs(procs.AVAILABLE, "/proc, that is Linux")
    settings = {"upstreams": [{"name": "bench", "base_url": bench.upstream_url}], "workers": 2}
    plan = Plan(mode="idle", streams=40, length=2, settle=0.0, rounds=1)
    with RelayProcess(settings) as relay:
        found = bench.run(plan, [Target("relay", relay.url, pids=(relay.pid,))], direct=False)["targets"]["relay"]
    assert not any(found["errors"].values()), found["samples"]
    assert len(found["connections"]) == 2  # the parent holds the socket and takes none
    assert sum(found["connections"]) == 40
