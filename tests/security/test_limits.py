"""Limits: a client that sends slowly, or without end, is let go in a bounded time, and costs no other client anything.

Those of events, streams, readers, owners, slow readers and of what an upstream may do are in
`tests/faults/test_bounds.py`, those of heads and JSON bodies in `tests/api/test_bad_input.py`.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator

import hpack
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from tests.security.wire import AUTH, H2, Heard, connect, listen, request, say
from tests.support.processes import RelayProcess
from tests.support.scripted import End, Gate, Head, ScriptedUpstream, Send, json_response, stream
from tests.support.site import Site
from tests.support.sseclient import open_stream
from tests.support.waiting import wait_until

READ = 1.0
IDLE = 2.0
SLACK = 3.0
"""How late a time-out may be on a busy machine."""

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\n"
LIVE = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream("data: {}\n\n", "data: [DONE]\n\n"))
        upstream.on("open", *stream("data: {}\n\n", Gate("for-ever")))
        upstream.on_path("POST /v1/files", *json_response(200, {"id": "file-1"}))
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "limits": {"read_timeout": f"{READ}s", "idle_timeout": f"{IDLE}s", "body": "1MiB"},
            "streams": {"abandon_after": "0s"},
        }
        with RelayProcess(config) as relay:
            yield Site(upstream, relay)


def drip(site: Site, first: bytes, drops: Iterable[bytes], every: float, give_up: float) -> tuple[Heard, float]:
    """Send the drops one by one until the server has had enough. What it said, and after how long."""
    began = time.monotonic()
    with connect(site.relay.url, give_up) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(first)
        over = threading.Event()

        def send() -> None:
            for drop in drops:
                if over.wait(every):
                    return
                try:
                    connection.sendall(drop)
                except OSError:
                    return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            heard = listen(connection, give_up)
        finally:
            over.set()
            sender.join()
    return heard, time.monotonic() - began


def endless(drop: bytes) -> Iterator[bytes]:
    while True:
        yield drop


# -- slow clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"GET /livez HTTP/1.1\r\nhost: x\r\n", b"PRI * HTTP/2.0\r\n\r\n"])
def test_a_head_that_trickles_ends_in_time(site: Site, first: bytes) -> None:
    drops = {b"": b"G", b"PRI * HTTP/2.0\r\n\r\n": b""}.get(first, b"x-a: b\r\n")
    heard, after = drip(site, first, endless(drops), 0.1, READ + SLACK + 2)
    assert heard.closed
    assert heard.statuses in ([], [400])
    assert after < READ + SLACK


def test_a_connection_that_says_nothing_ends_in_time(site: Site) -> None:
    with connect(site.relay.url) as connection:
        began = time.monotonic()
        assert listen(connection, READ + SLACK + 2) == Heard(b"", True)
        assert READ * 0.8 < time.monotonic() - began < READ + SLACK


@pytest.mark.parametrize("how", ["nothing", "settings", "pings"])
def test_a_connection_of_http2_without_a_request_ends_in_time(site: Site, how: str) -> None:
    began = time.monotonic()
    with H2(site.relay.url) as client:
        head = HeadersFrame(1, data=hpack.Encoder().encode(request()), flags=["END_STREAM"])
        drops = {"settings": SettingsFrame(0), "pings": PingFrame(0, opaque_data=b"12345678")}
        if how == "half a head":
            client.write(head.serialize())
        while not client.wait(None, 0.2):
            if how in drops:
                client.write(drops[how].serialize())
            assert time.monotonic() - began < READ + SLACK, "the connection is still there"
    assert time.monotonic() - began > READ * 0.8


def test_a_head_of_http2_without_its_end_ends_in_time(site: Site) -> None:
    with H2(site.relay.url) as client:
        client.write(HeadersFrame(1, data=hpack.Encoder().encode(request()), flags=["END_STREAM"]).serialize())
        began = time.monotonic()
        assert listen(client.socket, READ + SLACK + 2).closed
        assert READ * 0.8 < time.monotonic() - began < READ + SLACK


@pytest.mark.parametrize("how", ["answered", "cancelled", "malformed"])
def test_a_connection_of_http2_whose_requests_are_over_ends_in_time(site: Site, how: str) -> None:
    with H2(site.relay.url) as client:
        if how == "answered":
            client.wait(client.send(request(b"GET", b"/livez")))
        elif how == "malformed":
            client.wait(client.send(request(b"GET", b"/a b")))
        else:
            body = json.dumps({"model": "open", "stream": True, "messages": []}).encode()
            number = client.send(request(b"POST", b"/v1/chat/completions"), body)
            while not client.answers[number].body:
                client.wait(number, 0.1)
            client.h2.reset_stream(number, 8)
            client.flush()
        began = time.monotonic()
        assert client.wait(None, IDLE + SLACK + 2)
        assert client.closed
        assert time.monotonic() - began < IDLE + SLACK


def test_a_connection_between_requests_ends_in_time_and_not_before(site: Site) -> None:
    with connect(site.relay.url) as connection:
        for _ in range(2):
            connection.sendall(LIVE)
            assert listen(connection, 0.5).statuses == [200]
        began = time.monotonic()
        assert listen(connection, IDLE + SLACK + 2) == Heard(b"", True)
        assert READ < time.monotonic() - began < IDLE + SLACK


def test_a_second_head_that_trickles_ends_in_time(site: Site) -> None:
    heard, after = drip(site, LIVE + b"GET /livez HTTP/1.1\r\n", endless(b"x-a: b\r\n"), 0.1, IDLE + SLACK + 2)
    assert (heard.statuses, heard.closed) == ([200], True)
    assert after < IDLE + SLACK


BODIES = {
    "JSON": HEAD + b"content-length: 100000\r\n\r\n",
    "JSON in chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n",
    "a resume's": HEAD + b"last-event-id: st_AAAAAAAAAAAAAAAAAAAAAA.1\r\ncontent-length: 100000\r\n\r\n",
    "an upload": b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
    "an upload in chunks": b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    "one that nobody wants": b"GET /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
}


@pytest.mark.parametrize(
    ("kind", "how"), [*((kind, "drips") for kind in BODIES), ("JSON", "stops"), ("an upload", "stops")]
)
def test_a_body_that_trickles_ends_in_time(site: Site, kind: str, how: str) -> None:
    before = len(site.upstream.calls)
    drop = (b"1\r\n \r\n" if "chunks" in kind else b" ") if how == "drips" else b""
    heard, after = drip(site, BODIES[kind], endless(drop), 0.05, READ + SLACK + 7)
    assert (heard.statuses, heard.closed) == ([408], True)
    assert b"request_timeout" in heard.data
    assert READ * 0.8 < after < READ + SLACK + 5  # a refused body is read on for up to 5 s
    assert len(site.upstream.calls) == before, "what was cut short went upstream as if it were whole"


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/files"])
def test_a_body_that_trickles_over_http2_ends_alone(site: Site, path: bytes) -> None:
    before = len(site.upstream.calls)
    with H2(site.relay.url) as client:
        number = client.send(request(b"POST", path), b"{", end=False)
        assert client.wait(number, READ + SLACK + 5)
        assert client.answers[number].header(b":status") == b"408"
        other = client.send(request(b"GET", b"/livez"))
        client.wait(other)
        assert client.answers[other].header(b":status") == b"200"
    assert len(site.upstream.calls) == before


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
def test_a_slow_line_is_not_cut(site: Site, path: str) -> None:
    """4 KiB/s for longer than `limits.read_timeout`: four times the slowest pace."""
    body = json.dumps({"model": "m", "stream": True, "messages": [], "x": "y" * 12000}).encode()
    first = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    pieces = (body[i : i + 800] for i in range(0, len(body), 800))
    heard, after = drip(site, first, pieces, 0.2, 15)
    assert heard.statuses == [200]
    assert after > READ + 0.5
    assert site.upstream.calls[-1].body == body


# -- HTTP/2 -----------------------------------------------------------------------------------------------------------


def test_rapid_reset_ends_the_connection(site: Site) -> None:
    """CVE-2023-44487: requests that are cancelled as they are sent cost the server work and the client nothing."""
    with (
        H2(site.relay.url) as client,
        open_stream(
            site.relay.url + "/v1/chat/completions",
            headers=AUTH,
            body={"model": "open", "stream": True, "messages": []},
        ) as other,
    ):
        other.events(1)
        encoder = hpack.Encoder()
        number = -1
        give_up = time.monotonic() + 40
        while not client.closed and time.monotonic() < give_up:
            burst = b""
            for _ in range(100):
                number += 2
                block = encoder.encode(request(b"GET", b"/livez"))
                burst += HeadersFrame(number, data=block, flags=["END_STREAM", "END_HEADERS"]).serialize()
                burst += RstStreamFrame(number, error_code=8).serialize()
            client.write(burst)
        assert listen(client.socket, 10).closed
        assert say(site.relay.url, LIVE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")).statuses == [200]
        assert other.ended is None


def test_a_proxy_whose_clients_all_hang_up_keeps_its_connection(site: Site) -> None:
    with H2(site.relay.url) as client:
        for _ in range(500):
            number = client.send(request(b"GET", b"/livez"))
            client.h2.reset_stream(number, 8)
        client.flush()
        number = client.send(request(b"GET", b"/livez"))
        client.wait(number)
        assert client.answers[number].header(b":status") == b"200"
        assert not client.closed


def goodbyes(data: bytes) -> int:
    """How many GOAWAY frames a server has sent."""
    found = 0
    while len(data) >= 9:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        found += isinstance(frame, GoAwayFrame)
        data = data[9 + length :]
    return found


def test_a_flood_of_continuation_frames_ends_the_connection(site: Site) -> None:
    """CVE-2024-27983 and its kin: a head without an end, one small frame after another."""
    encoder = hpack.Encoder()
    with H2(site.relay.url) as client:
        flood = HeadersFrame(1, data=encoder.encode(request()), flags=["END_STREAM"]).serialize()
        for _ in range(64):
            flood += ContinuationFrame(1, data=encoder.encode([(b"x-a", b"b")])).serialize()
        client.write(flood)
        heard = listen(client.socket, READ + SLACK)
    assert heard.closed
    assert goodbyes(heard.data) == 1, "it was ended for its silence only"


def test_a_head_that_unpacks_to_much_ends_the_connection(site: Site) -> None:
    """An HPACK bomb: a few bytes that name one large entry of the table again and again."""
    with H2(site.relay.url) as client:
        encoder = hpack.Encoder()
        block = encoder.encode([*request(), *[(b"x-bomb", b"b" * 3000)] * 3000])
        assert len(block) < 10_000
        client.write(HeadersFrame(1, data=block, flags=["END_STREAM", "END_HEADERS"]).serialize())
        assert client.wait(None, 5)
        assert client.closed
        assert client.goodbye is not None


def test_a_head_of_40_kib_over_http2_is_refused_alone(site: Site) -> None:
    with H2(site.relay.url) as client:
        large = client.send(request(b"GET", b"/v1/models", *[(b"x-%d" % n, b"y" * 4000) for n in range(10)]))
        client.wait(large)
        assert client.answers[large].header(b":status") == b"431"
        other = client.send(request(b"GET", b"/livez"))
        client.wait(other)
        assert client.answers[other].header(b":status") == b"200"


def test_a_body_above_the_limit_over_http2_is_refused(site: Site) -> None:
    """With no Content-Length: it is counted as it comes."""
    before = len(site.upstream.calls)
    with H2(site.relay.url) as client:
        number = client.send(request(b"POST", b"/v1/chat/completions"), b" ", end=False)
        sent = 0
        while not client.answers[number].headers and sent < 8 << 20:
            room = min(client.h2.local_flow_control_window(number), client.h2.max_outbound_frame_size)
            if room > 0:
                client.h2.send_data(number, b" " * room)
                client.flush()
                sent += room
            client.wait(number, 0.01 if room > 0 else 1)
        assert client.answers[number].header(b":status") == b"413"
        assert sent < 2 << 20
    assert len(site.upstream.calls) == before


def test_a_head_without_end_is_refused(site: Site) -> None:
    """At twice the largest head, which is still answered in the API's own shape."""
    line = b"x-a: %b\r\n" % (b"y" * 993)
    heard = say(site.relay.url, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + line * 67)
    assert (heard.statuses, heard.closed) == ([431], True)


# -- codings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"])
def test_a_bomb_is_refused(site: Site, path: str) -> None:
    before = len(site.upstream.calls)
    bomb = gzip.compress(gzip.compress(bytes(256 << 20)))
    with open_stream(site.relay.url + path, headers={**AUTH, "content-encoding": "gzip, gzip"}, body=bomb) as answer:
        assert (answer.status, "request_too_large" in answer.read().decode()) == (413, True)
    assert len(site.upstream.calls) == before


@pytest.mark.parametrize("asked", [None, "gzip, br, zstd", "*", "gzip;q=1, identity;q=0"])
def test_a_stream_is_asked_for_without_coding(site: Site, asked: str | None) -> None:
    headers = AUTH if asked is None else {**AUTH, "accept-encoding": asked}
    body = {"model": "m", "stream": True, "messages": []}
    with open_stream(site.relay.url + "/v1/chat/completions", headers=headers, body=body) as answer:
        assert answer.status == 200
    call = site.upstream.calls_of("m")[-1]
    assert [value for name, value in call.headers if name.lower() == "accept-encoding"] == ["identity"]


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, br"])
def test_a_coded_stream_that_cannot_be_read_is_refused(site: Site, coding: str) -> None:
    head = Head(200, {"content-type": "text/event-stream", "content-encoding": coding})
    site.upstream.on("coded", head, Send(gzip.compress(b"data: {}\n\n" * 100_000)), End())
    body = {"model": "coded", "stream": True, "messages": []}
    with open_stream(site.relay.url + "/v1/chat/completions", headers=AUTH, body=body) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_malformed")
    call = site.upstream.calls_of("coded")[-1]
    wait_until(call.ended.is_set, 5, "the upstream's connection is let go")
