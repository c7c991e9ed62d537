"""What a client is owed: an answer for every stream that was made; and what it does not cost: its request, kept."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from relay.api.outgoing import RequestBody
from tests.conftest import Relays
from tests.support.cutting import Delay, FaultProxy
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import rss
from tests.support.scripted import Gate, Head, ScriptedUpstream, Send, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import valkey_server

pytestmark = pytest.mark.slow

AUTH = {"authorization": "Bearer sk-owed"}
MEGABYTE = 1 << 20


def post(url: str, model: str, path: str = PATH, prompt: str = "", **headers: str) -> RawStream:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    return open_stream(url + path, headers={**AUTH, **headers}, body=body, timeout=60)


@pytest.mark.parametrize("patience", ["100ms", "10s"], ids=["committed", "waiting"])
def test_a_bound_that_fires_while_the_store_still_makes_the_stream(
    patience: str, tmp_path: Path, upstream: ScriptedUpstream, relays: Relays
) -> None:
    """The stream exists, so its client is told of its end, and under which id the relay's log speaks of the request."""
    upstream.on("m", *stream(frame(1), Gate("never")))
    with valkey_server(tmp_path / "store") as store, FaultProxy(store.servers[0].port) as proxy:
        relay = relays.start(
            {
                "store": {"url": proxy.url},
                "upstreams": [{"name": "scripted", "base_url": upstream.url}],
                "streams": {"max_duration": "250ms", "patience": patience},
            }
        )
        post(relay.url, "m").read()  # its connections are open
        proxy.mode = Delay(0.2)
        with post(relay.url, "m", **{"x-request-id": "mine"}) as answer:
            events = answer.events()
            assert answer.status == 200
            assert check(events)[1] == "max_duration"
            assert answer.ended == "zero-chunk"
            assert answer.headers["x-request-id"] == "mine"
            assert events[-1].id == f"{answer.headers['relay-stream-id']}.0e"
        relays.stop_all()


def test_a_stream_that_begins_before_its_upstream_answers_names_its_request(
    relays: Relays, upstream: ScriptedUpstream
) -> None:
    upstream.on("m", Gate("answer"), *stream(frame(1), DONE))
    config: dict[str, Any] = {"upstreams": [{"name": "scripted", "base_url": upstream.url, "models": ["m", "n"]}]}
    relay = relays.start({**config, "streams": {"patience": "50ms"}})
    with post(relay.url, "m") as answer:
        given = answer.headers["x-request-id"]
        upstream.open("answer")
        assert check(answer.events()) == (1, "done")
    (call,) = upstream.calls
    assert call.header("x-request-id") == given
    with post(relay.url, "none", "/v1/messages") as refused:
        assert refused.status == 404
        refused.read()
    upstream.on("n", Gate("never"))
    with post(relay.url, "n", "/v1/messages", **{"x-request-id": "named"}) as answer:
        assert answer.headers["request-id"] == "named"


# -- the request's bytes ----------------------------------------------------------------------------------------------


def test_whoever_takes_the_bytes_is_the_only_one_that_holds_them() -> None:
    outgoing = RequestBody(b"x" * 10)
    assert (outgoing.take(), outgoing.take(), outgoing.size) == (b"x" * 10, b"", 10)

    async def sent() -> list[bytes | memoryview]:
        return [chunk async for chunk in RequestBody(b"y" * 10)]

    assert asyncio.run(sent()) == [b"y" * 10]


@pytest.mark.parametrize("how", ["idempotency-key", "x-session-id"])
@pytest.mark.parametrize("answered", [True, False], ids=["streaming", "upstream-still-silent"])
def test_a_live_stream_does_not_keep_its_request(
    answered: bool, how: str, relays: Relays, upstream: ScriptedUpstream
) -> None:
    head = () if answered else (Gate("never"),)
    upstream.on("m", *head, Head(200, {"content-type": "text/event-stream"}), Send(frame(1)), Gate("never"))
    upstream.on("small", *stream(frame(1), DONE))
    config: dict[str, Any] = {"upstreams": [{"name": "scripted", "base_url": upstream.url}]}
    relay = relays.start({**config, "streams": {"patience": "300ms"}})
    prompt = "lorem ipsum " * (4 * MEGABYTE // 12)
    post(relay.url, "small", prompt=prompt).read()
    before = rss(relay.pid)
    with ThreadPoolExecutor(2) as pool:
        held = list(pool.map(lambda n: post(relay.url, "m", prompt=prompt, **{how: f"k{n}"}), range(10)))
    assert [answer.status for answer in held] == [200] * 10
    for call in upstream.calls_of("m"):
        assert (call.header("content-length"), call.header("transfer-encoding")) == (str(len(call.body)), None)
        assert json.loads(call.body)["messages"][0]["content"] == prompt
    assert rss(relay.pid) - before < 20 * MEGABYTE, "half of ten requests of 4 MB"
    for answer in held:
        answer.close()
