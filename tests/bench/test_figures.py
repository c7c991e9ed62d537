"""From answers to figures: the arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from relay.bench import figures


def _answer(**changes: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(("events", "expected", "streams", "body_bytes"), 0),
        **{name: {} for name in ("errors", "delay_us", "first_us", "first_byte_us", "whole_us")},
        "samples": [],
        **changes,
    }


def _window(events: int, seconds: float, cpu: float, **changes: Any) -> dict[str, Any]:
    spent = {"generator_cpu": 0.1 * seconds, "upstream_cpu": 0.2 * seconds, "store_cpu": None}
    return {"events": events, "seconds": seconds, "cpu": cpu, **spent, **changes}


def test_percentiles_are_of_all_rounds() -> None:
    rounds = [_answer(delay_us={"1000": 98, "5000": 1}), _answer(delay_us={"3000": 1})]
    assert figures.summary("paced", rounds)["event_ms"] == {"p50": 1.0, "p99": 3.0, "max": 5.0}


def test_nothing_measured_is_none() -> None:
    found = figures.summary("paced", [_answer()])
    for name in ("event_ms", "added_event_ms", "cpu_us_per_event", "events_per_s", "memory", "together"):
        assert found[name] is None


def test_cpu_is_that_of_the_steady_window_and_starts_are_what_is_left() -> None:
    answer = _answer(streams=10, whole=_window(1000, 20.0, 0.3), steady=_window(500, 5.0, 0.1, store_cpu=0.05))
    found = figures.summary("paced", [answer, answer])
    assert found["cpu_us_per_event"] == pytest.approx(200)
    assert found["store_cpu_us_per_event"] == pytest.approx(100)
    assert found["cpu_ms_per_stream"] == pytest.approx(10)
    assert found["cpu_share"] == pytest.approx(0.02)
    assert found["events_per_s"] == pytest.approx(100)
    assert found["events_per_cpu_s"] == pytest.approx(5000)
    assert found["load"] == {"generator_share": pytest.approx(0.1), "upstream_share": pytest.approx(0.2)}


def test_all_cpu_counts_where_streams_only_begin_and_end() -> None:
    window = {**_window(0, 10.0, 0.3, store_cpu=0.1), "streams": 100}
    found = figures.summary("begin", [_answer(begun=window), _answer(begun=window)])
    assert found["cpu_ms_per_stream"] == pytest.approx(3)
    assert found["store_cpu_ms_per_stream"] == pytest.approx(1)
    assert found["cpu_us_per_event"] is None
    assert found["cpu_share"] == pytest.approx(0.03)


def test_what_ran_beside_and_what_was_equal_is_of_all_rounds() -> None:
    rounds = [
        _answer(meanwhile={"calm": {"1000": 1}, "burst": {"3000": 1}}, faithful={"equal": 1, "streams": 2}),
        _answer(meanwhile={"calm": {"2000": 1}, "burst": {"9000": 1}}, faithful={"equal": 2, "streams": 2}),
    ]
    found = figures.summary("beside", rounds)
    assert {when: times["max"] for when, times in found["meanwhile"].items()} == {"calm": 2.0, "burst": 9.0}
    assert found["faithful"] == {"equal": 3, "streams": 4}


def test_the_worst_of_the_rounds_says_what_others_have_used() -> None:
    assert figures.summary("paced", [_answer(others_share=0.01), _answer(others_share=0.4)])["others_share"] == 0.4


def test_what_is_added_is_the_difference() -> None:
    direct = figures.summary("paced", [_answer(delay_us={"200": 1}, first_us={"500": 1})])
    target = figures.summary("paced", [_answer(delay_us={"700": 1}, first_us={"2500": 1})])
    figures.add_difference(target, direct)
    assert target["added_event_ms"]["p50"] == pytest.approx(0.5)
    assert target["added_first_event_ms"]["max"] == pytest.approx(2.0)


def test_memory_is_of_the_live_streams() -> None:
    memory = {"memory_before": {"rss": 100, "store_rss": 10}, "memory_live": {"rss": 1100, "store_rss": 30}}
    found = figures.summary("idle", [_answer(streams_live=10, **memory)])
    assert found["memory"] == {"rss": 100.0, "store_rss": 2.0}


@pytest.mark.parametrize(
    ("changes", "on_one", "warned"),
    [
        ({}, True, []),
        ({"load": {"generator_share": 0.5, "upstream_share": 0.4}}, True, ["the load itself"]),
        ({"load": {"generator_share": 0.5, "upstream_share": 0.4}}, False, []),
        ({"load": {"generator_share": 0.81, "upstream_share": None}}, False, ["the load itself"]),
        ({"cpu_share": 0.7, "store_cpu_share": 0.3}, True, ["its core was full"]),
        ({"cpu_share": 2.5}, False, []),
        ({"errors": {"missing": 1}, "samples": ["lost"]}, True, ["errors. lost"]),
        ({"others_share": 0.2}, True, ["not quiet: others used 20% of a core"]),
        ({"others_share": 0.04}, True, []),
    ],
)
def test_warnings(changes: dict[str, Any], on_one: bool, warned: list[str]) -> None:
    target = {**figures.summary("paced", [_answer()]), **changes}
    found = figures.warnings("paced", {"gateway": target}, load_on_one=on_one, target_on_one=on_one)
    assert len(found) == len(warned)
    assert all(text in warning for text, warning in zip(warned, found, strict=True))


@pytest.mark.parametrize(
    ("load_average", "others", "quiet"), [(0.0, 0.0, True), (0.5, 0.05, True), (0.6, 0.0, False), (0.0, 0.06, False)]
)
def test_a_machine_is_quiet_before_and_meanwhile_or_it_is_not(load_average: float, others: float, quiet: bool) -> None:
    assert figures.quiet(load_average, others) is quiet
