"""`relay bench` as a user runs it, against a real relay: nothing is lost, and the figures are where they should be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.bench import figures, procs
from relay.bench.measure import Bench, Plan, Target
from tests.support.processes import RelayProcess, free_port, needs

pytestmark = pytest.mark.slow

_STREAMS, _LENGTH = 3, 20


@pytest.fixture(scope="module")
def relay(bench: Bench) -> Iterator[Target]:
    with RelayProcess({"upstreams": [{"name": "bench", "base_url": bench.upstream_url}]}) as process:
        yield Target("relay", process.url, pids=(process.pid,))


def _run(bench: Bench, relay: Target, **plan: Any) -> dict[str, Any]:
    results = bench.run(Plan(**{"streams": _STREAMS, "length": _LENGTH, "rounds": 1, **plan}), [relay])
    for target in results["targets"].values():
        assert not any(target["errors"].values()), target["samples"]
    found: dict[str, Any] = results["targets"]["relay"]
    return found


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
def test_paced_streams(bench: Bench, relay: Target, api: str) -> None:
    found = _run(bench, relay, api=api, rate=20.0)
    assert (found["streams"], found["events"]) == (_STREAMS, _STREAMS * _LENGTH)
    assert 0 < found["event_ms"]["p50"] <= found["event_ms"]["p99"] <= found["event_ms"]["max"]
    assert found["added_event_ms"] is not None
    assert found["first_event_ms"]["p50"] > 0


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
def test_unpaced_streams(bench: Bench, relay: Target, api: str) -> None:
    found = _run(bench, relay, mode="unpaced", api=api, length=500, payload=100, rounds=2)
    assert found["events"] == found["expected"] == 2 * _STREAMS * 500
    assert found["body_bytes"] > found["events"] * 100


def test_burst_and_single_requests(bench: Bench, relay: Target) -> None:
    burst = _run(bench, relay, mode="burst", streams=20, rate=50.0)
    assert (burst["streams"], burst["events"]) == (20, 20 * _LENGTH)
    first = _run(bench, relay, mode="first", length=1, repeats=3)
    assert (first["streams"], first["events"]) == (4, 4)  # one opens the connection
    assert first["first_event_ms"] is not None


def test_a_stream_read_again(bench: Bench, relay: Target) -> None:
    plan = Plan(mode="resume", streams=10, length=200, total=2, repeats=3, rounds=1)
    found = bench.run(plan, [relay], direct=False)["targets"]["relay"]
    assert not any(found["errors"].values()), found["samples"]
    assert found["streams"] == 2 + 3 + 10
    assert found["events"] == found["streams"] * 200
    assert found["together"]["readers"] == 10
    assert 0 < found["first_byte_ms"]["p50"] <= found["whole_ms"]["p50"]


def test_resume_needs_a_relay(bench: Bench) -> None:
    plan = Plan(mode="resume", streams=10, length=200, total=2, repeats=3, rounds=1)
    found = bench.run(plan, [Target("upstream", bench.upstream_url)], direct=False)["targets"]["upstream"]
    assert found["errors"]["refused"] == 1
    assert "only a relay" in found["samples"][0]


def test_memory_of_idle_streams_and_of_many(bench: Bench, relay: Target) -> None:
    needs(procs.AVAILABLE, "/proc, that is Linux")
    idle = _run(bench, relay, mode="idle", streams=20, length=2, settle=0.0)
    assert (idle["streams"], idle["events"]) == (20, 40)
    assert set(idle["memory"]) == {"rss", "store_rss"}
    churn = _run(bench, relay, mode="churn", streams=5, total=50, settle=0.0)
    assert (churn["streams"], churn["events"]) == (50, 50 * _LENGTH)
    assert [step["streams"] for step in churn["memory"]] == list(range(5, 51, 5))
    assert all(step["memory"]["rss"] > 1 << 20 for step in churn["memory"])


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_measures_a_gateway_and_writes_the_documented_keys(tmp_path: Path) -> None:
    address, out = f"127.0.0.1:{free_port()}", tmp_path / "out.json"
    with RelayProcess({"upstreams": [{"name": "bench", "base_url": f"http://{address}"}]}) as relay:
        done = _command(
            *("--target", relay.url, "--pid", str(relay.pid), "--against", f"again={relay.url}/v1"),
            *("--header", "again=x-from: test", "--upstream-bind", address),
            *("--streams", "3", "--length", "20", "--rate", "40", "--rounds", "1", "--json", str(out)),
        )
    assert done.returncode == 0, done.stderr
    assert f"http://{address}" in done.stdout
    assert re.search(r"events that arrived / expected +60 / 60 +60 / 60 +60 / 60\n", done.stdout)
    assert re.search(r"load average before \d+\.\d\d, others used \d+% of a core: the machine was ", done.stdout)
    results = json.loads(out.read_text())
    assert set(results) == {"plan", "targets", "warnings", "machine", "load_average", "cores", "processes"}
    assert set(results["targets"]) == {"direct", "target", "again"}
    documented = set(re.findall(r"^    ([a-z_, ]+?)(?:  |$)", figures.__doc__ or "", re.MULTILINE))
    names = {name.strip() for line in documented for name in line.split(",")}
    assert {name for target in results["targets"].values() for name in target} == names
    if procs.AVAILABLE:
        assert results["targets"]["target"]["cpu_us_per_event"] > 0
        assert results["targets"]["target"]["store_cpu_us_per_event"] is not None
        assert results["targets"]["again"]["cpu_us_per_event"] is None


def test_the_command_alone_starts_a_relay() -> None:
    done = _command("--unpaced", "--streams", "3", "--length", "20", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"errors +none +none\n", done.stdout)
    assert not done.stderr  # no progress where no terminal is


def test_the_command_fails_where_nobody_answers() -> None:
    done = _command(
        *("--target", f"http://127.0.0.1:{free_port()}", "--upstream-bind", "127.0.0.1:0"),
        *("--streams", "3", "--length", "20", "--rounds", "1"),
    )
    assert done.returncode == 1
    assert "9 refused" not in done.stdout
    assert "3 refused" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "127.0.0.1:1"), "http://"),
        (("--target", "http://127.0.0.1:1", "--pid", "999999999"), "no process"),
        (("--rate", "0"), "--unpaced"),
        (("--streams", "none"), "whole number"),
    ],
)
def test_what_cannot_be_done_is_explained(arguments: tuple[str, ...], message: str) -> None:
    done = _command("--upstream-bind", "127.0.0.1:0", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
