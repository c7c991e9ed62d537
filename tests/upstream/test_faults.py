"""What the upstreams break on purpose: streams end with an explicit error, refusals pass as they are.

Nothing is asked of an upstream twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Relays
from tests.support.ids import end_ids, event_ids
from tests.support.sseclient import RawEvent, open_stream
from tests.support.streams import APIS, PATHS, Api, credential
from tests.upstream.conftest import Pair
from tests.upstream.formats import KEY, error_code, normal, request
from tests.upstream.servers import Upstream

pytestmark = pytest.mark.slow

with_llama_cpp = pytest.mark.parametrize("server", ["llama.cpp"], indirect=True)
with_aimock = pytest.mark.parametrize("server", ["aimock"], indirect=True)
with_llmock = pytest.mark.parametrize("server", ["llmock"], indirect=True)
each_api = pytest.mark.parametrize("api", APIS)


def split_at_error(api: Api, events: list[RawEvent]) -> tuple[list[RawEvent], str]:
    """The events before the error frame, and its code."""
    frames = 1 if api == "messages" else 2
    return events[:-frames], error_code(api, events[-frames:])


def pings(api: Api) -> int:
    """How many of llmock's first events are keep-alives, which the relay does not forward."""
    return 1 if api == "messages" else 0


def broken_stream(relay_url: str, api: Api, body: object) -> tuple[list[RawEvent], str]:
    """What a client of the relay gets of a stream that breaks, as `split_at_error` tells it."""
    with open_stream(relay_url + PATHS[api], headers=credential(api, KEY), body=body) as answer:
        events = answer.events()
        assert (answer.status, answer.ended) == (200, "zero-chunk")
        stream_id = answer.headers["relay-stream-id"]
    before, code = split_at_error(api, events)
    told = end_ids(stream_id, len(before), len(events) - len(before))
    assert [event.id for event in events] == [*event_ids(stream_id, len(before)), *told]
    return before, code


def refusal(url: str, api: Api, body: object) -> tuple[int, bytes, dict[str, str]]:
    """Status, body, and the headers that a client acts on."""
    with open_stream(url, headers=credential(api, KEY), body=body) as answer:
        told = {
            name: value
            for name, value in answer.headers.items()
            if name in ("content-type", "retry-after") or "ratelimit" in name
        }
        assert "relay-stream-id" not in answer.headers
        return answer.status, answer.read(), told


@with_llama_cpp
@each_api
def test_llama_cpp_refusal_passes_verbatim(server: Upstream, pair: Pair, api: Api) -> None:
    body = {"model": server.model, "stream": True}
    direct = refusal(server.endpoint(api), api, body)
    assert direct[0] >= 400
    assert refusal(pair.first.url + PATHS[api], api, body) == direct


@with_aimock
@each_api
def test_aimock_cut_ends_with_an_error(server: Upstream, pair: Pair, api: Api) -> None:
    body = request(api, server.model, "cut the answer")
    with open_stream(server.endpoint(api), headers=credential(api, KEY), body=body) as answer:
        direct = answer.events()
        assert answer.ended in ("fin", "reset")

    events, code = broken_stream(pair.first.url, api, body)
    assert code == "upstream_disconnected"
    # aimock destroys the socket right after a write, which may or may not be lost with it.
    common = min(len(events), len(direct))
    assert common >= 4
    assert [normal(event) for event in events[:common]] == [normal(event) for event in direct[:common]]


@with_aimock
@each_api
@pytest.mark.parametrize(("prompt", "status"), [("slow down", 429), ("break", 503)])
def test_aimock_refusal_passes_verbatim(server: Upstream, pair: Pair, api: Api, prompt: str, status: int) -> None:
    body = request(api, server.model, prompt)
    direct = refusal(server.endpoint(api), api, body)
    assert direct[0] == status
    assert ("retry-after" in direct[2]) == (status == 429)
    assert refusal(pair.first.url + PATHS[api], api, body) == direct


class Llmock:
    """The control side of a running llmock."""

    def __init__(self, upstream: Upstream) -> None:
        self._url = f"{upstream.url}/_llmock"

    def play(self, **behavior: Any) -> None:
        """Let the next request meet this behaviour; forget all before it."""
        self.forget()
        with open_stream(f"{self._url}/scenario", body={"behaviors": [behavior]}) as answer:
            assert answer.status in (200, 201, 204), answer.read()

    def forget(self) -> None:
        with open_stream(f"{self._url}/reset", body={}) as answer:
            assert answer.status in (200, 204), answer.read()

    def calls(self) -> int:
        with open_stream(f"{self._url}/requests", "GET") as answer:
            return len(answer.json["requests"])


@pytest.fixture
def control(server: Upstream) -> Iterator[Llmock]:
    control = Llmock(server)
    yield control
    control.forget()


@with_llmock
@each_api
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("disconnect", "upstream_disconnected"),
        ("truncate", "upstream_disconnected"),  # a clean end of the body, but no terminal event
        ("malformed", "upstream_malformed"),
    ],
)
def test_llmock_fault_ends_with_an_error(
    server: Upstream, pair: Pair, control: Llmock, api: Api, kind: str, after: int, code: str
) -> None:
    body = request(api, server.model, "say hello")
    control.play(type="stream_fault", kind=kind, after_chunks=after)
    if after == 0 and kind != "malformed":  # nothing has been sent yet, so the error has a status
        status, body_told, _ = refusal(pair.first.url + PATHS[api], api, body)
        assert status == 502
        assert code.encode() in body_told
    else:
        events, told = broken_stream(pair.first.url, api, body)
        assert (told, len(events)) == (code, after - pings(api) if after else 0)
    assert control.calls() == 1


@with_llmock
@each_api
def test_llmock_stall_ends_with_an_error(
    server: Upstream, pair: Pair, control: Llmock, relays: Relays, api: Api
) -> None:
    relay = relays.start(
        {
            "upstreams": server.settings(),
            "store": {"url": pair.store_url},
            "streams": {"upstream_idle_timeout": "1s"},
        }
    )
    control.play(type="stream_fault", kind="stall", after_chunks=3, stall_seconds=60)
    events, told = broken_stream(relay.url, api, request(api, server.model, "say hello"))
    assert (told, len(events)) == ("upstream_timeout", 3 - pings(api))
    assert control.calls() == 1


@with_llmock
@each_api
@pytest.mark.parametrize("status", [401, 429, 529])
def test_llmock_refusal_passes_verbatim(server: Upstream, pair: Pair, control: Llmock, api: Api, status: int) -> None:
    body = request(api, server.model, "say hello")
    fault: dict[str, Any] = {"type": "fail", "status": status, "retry_after": 7 if status == 429 else None}
    control.play(**fault)
    direct = refusal(server.endpoint(api), api, body)
    control.play(**fault)
    assert refusal(pair.first.url + PATHS[api], api, body) == direct
    assert direct[0] == status
    assert control.calls() == 1
