"""A stream that another replica went on with: its story says who had it, and who took it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Relays
from tests.inspection.test_streams import END, TOKEN, WAIT, Operator, ask, name_of
from tests.observe.test_traces import Collector, attributes, collector, environment, events
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.site import served_by
from tests.support.sseclient import open_stream
from tests.support.stores import Store, valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

assert collector  # the fixture
AUTH = {"authorization": "Bearer sk-1"}
ENV = {"FAR_KEY": "sk-far"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path / "store") as server:
        yield server


def near(far_url: str, store: Store) -> dict[str, Any]:
    return {
        "upstreams": [{"name": "far", "base_url": far_url, "resume": "auto", "api_key_env": "FAR_KEY"}],
        "store": {"url": store.url},
        "streams": {"lease": "1s", "heartbeat": "300ms"},
        "drain": {"timeout": "0s"},
    }


def test_a_takeover_is_told(upstream: ScriptedUpstream, store: Store, relays: Relays, tmp_path: Path) -> None:
    upstream.on("m", *stream(TOKEN, Gate("on"), TOKEN, *END))
    far = relays.start({**served_by(upstream), "streams": {"heartbeat": "300ms"}})
    one, two = (relays.start(near(far.url, store), ENV) for _ in range(2))
    operator = Operator(tmp_path, two, ENV)
    with ask(one, AUTH) as answer:
        name = name_of(answer)
        answer.events(1)
        one.kill()
    wait_until(lambda: "taken over" in operator.told(name), WAIT, "the takeover to be told")
    upstream.open("on")
    with open_stream(f"{two.url}/streams/{name}", "GET", AUTH) as again:
        assert len(again.events()) == 4
    shown = operator.show(name)
    by = {line["what"]: line for line in shown["story"]}
    assert by["taken over"]["from"] == by["begun"]["on"] != by["taken over"]["on"] == shown["replica"]
    assert (by["taken over"]["events"], shown["state"]) == (1, "completed")


def test_a_takeover_goes_on_in_the_trace(
    upstream: ScriptedUpstream, store: Store, collector: Collector, relays: Relays
) -> None:
    upstream.on("m", *stream(TOKEN, Gate("on"), TOKEN, *END))
    far = relays.start({**served_by(upstream), "streams": {"heartbeat": "300ms"}})
    one, two = (relays.start(near(far.url, store), ENV | environment(collector)) for _ in range(2))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with ask(one, AUTH | {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}) as answer:
        name = name_of(answer)
        answer.events(1)
        one.kill()
    with open_stream(f"{two.url}/streams/{name}", "GET", AUTH) as again:
        again.events(1)
        upstream.open("on")
        again.read()
    (span,) = collector.wait("chat")
    assert (span.trace_id.hex(), events(span)[0]) == (trace, "takeover")
    assert attributes(span)["relay.outcome"] == "completed"
