"""Event streams on any path: at once, kept alive between two events and never within one, and bounded."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from relay.api.passed_events import PassedEvents, head
from relay.metrics import Metrics
from relay.streams.reader import Lost
from tests.support.asking import ask
from tests.support.scripted import Cut, Gate, Head, Send, json_response, stream
from tests.support.site import Site, one_relay

EVENT = b'data: {"type":"image.partial"}\n\n'
JSON = {"content-type": "application/json", "authorization": "Bearer k"}
ASKS = [
    ("POST", "/v1/images/generations", b'{"model":"m","stream":true}'),
    ("POST", "/v1/audio/speech", b'{"model":"m","stream_format":"sse"}'),
    ("POST", "/v1/completions", b'{"model":"m","stream":true}'),
    ("GET", "/v1/sessions/s1/events", b""),
    ("POST", "/v1/threads/t1/runs/", b'{"assistant_id":"a","stream":true}'),
]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with one_relay(streams={"heartbeat": "200ms", "max_duration": "3s"}) as site:
        yield site


@pytest.mark.parametrize(("method", "path", "body"), ASKS)
def test_it_is_unbuffered_and_kept_alive_whatever_path_it_has(site: Site, method: str, path: str, body: bytes) -> None:
    site.upstream.on_path(f"{method} {path}", *stream(EVENT, Gate(path), EVENT, headers={"x-kept": "1"}))
    answer = ask(site.relay.url + path, method, headers=JSON, body=body)
    began = time.monotonic()
    head = answer.headers
    assert (head["x-accel-buffering"], head["incremental"], head["x-kept"]) == ("no", "?1", "1")
    assert head["cache-control"] == "no-cache, no-store, no-transform"
    events = iter(answer)
    assert (first := next(events)).data
    assert not first.is_heartbeat
    assert time.monotonic() - began < 1, "it waited for something"
    assert next(events).is_heartbeat
    site.upstream.open(path)
    answer.read()
    assert answer.raw_body.replace(b": hb\n\n", b"") == EVENT * 2
    call = next(call for call in site.upstream.calls if call.path == path)
    assert call.header("incremental") == ("?1" if body else None)


def test_a_request_that_accepts_events_says_so(site: Site) -> None:
    site.upstream.on_path("GET /v1/feed", *stream(EVENT))
    ask(site.relay.url + "/v1/feed", "GET", headers={**JSON, "accept": "text/event-stream"}).read()
    assert next(call for call in site.upstream.calls if call.path == "/v1/feed").header("incremental") == "?1"


def test_one_that_breaks_off_breaks_off(site: Site) -> None:
    site.upstream.on_path("GET /v1/cut", Head(200, {"content-type": "text/event-stream"}), Send(EVENT), Cut())
    answer = ask(site.relay.url + "/v1/cut", "GET", headers=JSON)
    answer.read()
    assert answer.ended in ("fin", "reset")


def test_it_lasts_no_longer_than_a_relayed_one(site: Site) -> None:
    site.upstream.on_path("GET /v1/long", *stream(EVENT, Gate("never")))
    began = time.monotonic()
    ask(site.relay.url + "/v1/long", "GET", headers=JSON).read()
    assert 2.5 < time.monotonic() - began < 6
    call = next(call for call in site.upstream.calls if call.path == "/v1/long")
    assert call.ended.wait(2)
    assert call.cancelled


def test_who_leaves_ends_the_call(site: Site) -> None:
    site.upstream.on_path("GET /v1/left", *stream(EVENT, Gate("left")))
    host, _, port = site.relay.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /v1/left HTTP/1.1\r\nhost: r\r\n\r\n")
        site.upstream.wait_reached("left")
    call = next(call for call in site.upstream.calls if call.path == "/v1/left")
    assert call.ended.wait(2)
    assert call.cancelled


def test_what_is_no_event_stream_is_as_it_was(site: Site) -> None:
    site.upstream.on_path("GET /v1/plain", *json_response(200, {"a": 1}, {"cache-control": "max-age=5"}))
    answer = ask(site.relay.url + "/v1/plain", "GET", headers=JSON)
    assert answer.headers["cache-control"] == "max-age=5"
    assert "incremental" not in answer.headers
    assert answer.headers["content-length"] == str(len(answer.read()))


class TestBetweenEvents:
    """Where a heartbeat may stand, and in which form, without a relay."""

    @staticmethod
    def heard(*chunks: bytes) -> tuple[bytes, bytes]:
        """What `read` answers to a nudge after some bytes (b"-" where it goes on waiting), and the heartbeat's form."""

        async def played() -> tuple[bytes, bytes]:
            waiting = asyncio.Event()

            async def arriving() -> AsyncIterator[bytes]:
                for chunk in chunks:
                    yield chunk
                await waiting.wait()
                yield b"-"

            source = PassedEvents(arriving(), Metrics().meter("other", "u", "other"))
            for _ in chunks:
                await source.read()
            reading = asyncio.ensure_future(source.read())
            await asyncio.sleep(0)
            source.nudge()
            await asyncio.sleep(0.01)
            waiting.set()
            found = await reading
            source.close()
            return found or b"", source.heartbeat

        return asyncio.run(played())

    @pytest.mark.parametrize(
        ("chunks", "found"),
        [
            ((), b""),
            ((b"data: 1\n\n",), b""),
            ((b"data: 1\r\n\r\n",), b""),
            ((b"data: 1\n", b"\n"), b""),
            ((b"data: 1\r", b"\n\r", b"\n"), b""),
            ((b"data: 1",), b"-"),
            ((b"data: 1\n",), b"-"),
            ((b"data: 1\r\n",), b"-"),
            ((b"data: 1\n\ndata: ",), b"-"),
            ((b"event: x\n", b"data: \\n\\n"), b"-"),
        ],
    )
    def test_a_heartbeat_stands_between_two_events_only(self, chunks: tuple[bytes, ...], found: bytes) -> None:
        assert self.heard(*chunks)[0] == found

    @pytest.mark.parametrize("chunks", [(b"id: 1\ndata: x\n\n",), (b"data: x\ni", b"d: 1\n\n")])
    def test_after_an_id_it_has_no_blank_line(self, chunks: tuple[bytes, ...]) -> None:
        assert self.heard(*chunks)[1] == b": hb\n"

    @pytest.mark.parametrize("chunks", [(b'data: {"id": "1"}\n\n',), (b"data: id: 1\n\n",), ()])
    def test_without_one_it_is_a_block_of_its_own(self, chunks: tuple[bytes, ...]) -> None:
        assert self.heard(*chunks)[1] == b": hb\n\n"

    def test_an_end_that_is_none_is_lost(self) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield EVENT
            raise httpx.ReadError("cut")

        async def played() -> None:
            source = PassedEvents(broken(), Metrics().meter("other", "u", "other"))
            assert await source.read() == EVENT
            with pytest.raises(Lost):
                await source.read()

        asyncio.run(played())


def test_its_head_has_no_length_and_nothing_twice() -> None:
    given = [(b"content-type", b"text/event-stream"), (b"content-length", b"5"), (b"cache-control", b"private")]
    names = [name for name, _ in head(given, [])]
    assert names == [b"content-type", b"cache-control", b"x-accel-buffering", b"incremental"]
