"""Small streams beside large ones, and streams byte by byte: a gateway's defect shows in the figure made for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay.bench.measure import Bench, Plan, Target
from tests.bench.defective import Defects, gateway
from tests.support.processes import RelayProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def relay(bench: Bench) -> Iterator[Target]:
    settings = {"upstreams": [{"name": "bench", "base_url": bench.upstream_url}], "streams": {"heartbeat": "100ms"}}
    with RelayProcess(settings) as process:
        yield Target("relay", process.url)


def test_a_request_that_holds_others_up_shows_in_their_events(bench: Bench) -> None:
    plan = Plan(mode="neighbours", running=10, streams=1, length=1, repeats=1, settle=4.0, rounds=1)
    with gateway(bench.upstream_url, Defects(burn_mib=0.02)) as defective:
        found = bench.run(plan, [defective], direct=False)["targets"]["gateway"]
    assert not any(found["errors"].values()), found["samples"]
    assert found["streams"] == 10 + 4 + 1 + 1
    late = found["meanwhile"]
    assert set(late) == {"calm", "prompt", "events", "body"}
    assert late["body"]["max"] > 300  # 31 MiB take it 620 ms
    assert late["body"]["max"] > late["calm"]["max"]


def test_streams_that_are_not_what_was_sent_are_counted(bench: Bench) -> None:
    plan = Plan(mode="fidelity", streams=10, length=10, rate=20.0, rounds=1, starts=1000.0)
    with gateway(bench.upstream_url, Defects(twisted=4)) as defective:
        found = bench.run(plan, [defective])["targets"]
    assert found["direct"]["faithful"] == {"equal": 10, "streams": 10}
    # Of the requests 11 to 20, behind those of the warm-up. Their numbers are right, so nothing else would tell.
    assert found["gateway"]["faithful"] == {"equal": 7, "streams": 10}
    assert not any(found["gateway"]["errors"].values())


def test_streams_that_did_not_end_are_not_equal(bench: Bench) -> None:
    plan = Plan(mode="fidelity", streams=10, length=10, rate=20.0, rounds=1, starts=1000.0)
    with gateway(bench.upstream_url, Defects(cut=4, refused=7)) as defective:
        found = bench.run(plan, [defective])["targets"]["gateway"]
    assert found["faithful"] == {"equal": 6, "streams": 10}  # 12, 14, 16 and 20


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
def test_what_a_relay_adds_is_no_difference(bench: Bench, relay: Target, api: str) -> None:
    plan = Plan(mode="fidelity", api=api, streams=3, length=3, rate=4.0, rounds=1, starts=1000.0)
    found = bench.run(plan, [relay], direct=False)["targets"]["relay"]
    assert not any(found["errors"].values()), found["samples"]
    assert found["faithful"] == {"equal": 3, "streams": 3}
