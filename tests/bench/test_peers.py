"""The plain proxies that the relay is compared with pass every stream on, whole and as it comes."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from relay.bench.measure import Bench, Plan
from tests.support.processes import needs

pytestmark = pytest.mark.slow
_BENCH = Path(__file__).resolve().parents[2] / "deploy/bench"


@pytest.fixture(scope="module")
def proxies() -> ModuleType:
    sys.path.insert(0, str(_BENCH))
    try:
        return importlib.import_module("proxies")
    finally:
        sys.path.pop(0)


def test_envoy_passes_streams_on_as_they_come(bench: Bench, proxies: ModuleType) -> None:
    plan = Plan(mode="fidelity", streams=5, length=10, rate=20.0, rounds=1, starts=1000.0)
    with proxies.envoy(bench.upstream_url, None) as target:
        found = bench.run(plan, [target], direct=False)["targets"]["envoy"]
    assert not any(found["errors"].values()), found["samples"]
    assert found["faithful"] == {"equal": 5, "streams": 5}
    # Events come for 450 ms; buffered, the first would come with the last.
    assert found["whole_ms"]["p50"] - found["first_event_ms"]["p50"] > 100
    assert proxies.envoy_version()[0].isdigit()


def test_envoy_takes_large_requests_and_many_connections(bench: Bench, proxies: ModuleType) -> None:
    with proxies.envoy(bench.upstream_url, None) as target:
        burst = bench.run(Plan(mode="burst", streams=200, length=1, rounds=1), [target], direct=False)["targets"][
            "envoy"
        ]
        plan = Plan(mode="neighbours", running=2, streams=1, length=1, repeats=1, settle=0.0, rounds=1)
        large = bench.run(plan, [target], direct=False)["targets"]["envoy"]
    assert not any(burst["errors"].values()), burst["samples"]
    assert not any(large["errors"].values()), large["samples"]


def test_the_source_of_gos_proxy_is_formatted_and_flushes_at_once() -> None:
    """Building Go's standard library takes half a minute, so that only `make bench` does it."""
    source = (_BENCH / "reverseproxy/main.go").read_text()
    assert "proxy.FlushInterval = -1" in source
    needs(shutil.which("gofmt") is not None, "gofmt: install golang-go")
    said = subprocess.run(["gofmt", "-l", str(_BENCH / "reverseproxy")], capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("", "")
