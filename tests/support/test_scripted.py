"""The scripted server's framing: what it sends is what the script says, to the byte."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.scripted import (
    Cut,
    Gate,
    Head,
    Pause,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    json_response,
    sse,
    stream,
)
from tests.support.sseclient import open_stream

BODY = {"model": "m"}
FRAMES = ("data: one\n\n", ": hb\n", "id: s.2\nevent: x\ndata: two\ndata: lines\n\n")


def _dial(upstream: ScriptedUpstream) -> socket.socket:
    host, port = upstream.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 5)


def test_chunked_stream_is_byte_exact_and_keeps_the_connection(upstream: ScriptedUpstream) -> None:
    upstream.on("m", *stream("data: a\n\n", "data: b\n\n"))
    request = b'POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 13\r\n\r\n{"model":"m"}'
    answer = (
        b"HTTP/1.1 200 Scripted\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        b"9\r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n"
    )
    with _dial(upstream) as connection:
        for _ in range(2):
            connection.sendall(request)
            received = b""
            while len(received) < len(answer):
                received += connection.recv(4096)
            assert received == answer
    assert len(upstream.calls_of("m")) == 2


def test_chunked_request_body_and_headers_are_read(upstream: ScriptedUpstream) -> None:
    upstream.on_path("POST /v1/x", *json_response(201, {"ok": True}))
    with _dial(upstream) as connection:
        head = b"POST /v1/x?q=1 HTTP/1.1\r\nhost: h\r\nX-Two: 2\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b'8;ext=1\r\n{"model"\r\n5\r\n:"m"}\r\n0\r\n\r\n')
        assert connection.recv(64).startswith(b"HTTP/1.1 201 ")
    (call,) = upstream.calls
    assert (call.path, call.json, call.header("x-two")) == ("/v1/x?q=1", BODY, "2")


@pytest.mark.parametrize(
    ("last", "ending"),
    [((), "zero-chunk"), ((Cut(),), "fin"), ((Reset(),), "reset")],
    ids=["end", "cut", "reset"],
)
def test_the_end_of_a_body_is_told_apart(upstream: ScriptedUpstream, last: tuple[Step, ...], ending: str) -> None:
    upstream.on("m", Head(), *sse(*FRAMES), Gate("read"), *last)
    with open_stream(upstream.url, body=BODY) as answer:
        found = [next(iter(answer)) for _ in FRAMES]
        upstream.open("read")
        assert list(answer) == []
        assert answer.ended == ending
    assert answer.raw_body == "".join(FRAMES).encode()
    assert [event.raw.decode() for event in found] == list(FRAMES)
    assert [event.is_heartbeat for event in found] == [False, True, False]
    assert (found[2].id, found[2].event, found[2].data) == ("s.2", "x", "two\nlines")
    assert upstream.calls[0].ended.wait(5)
    assert not upstream.calls[0].cancelled


@pytest.mark.parametrize("framing", ["length", "close"])
def test_other_framings(upstream: ScriptedUpstream, framing: str) -> None:
    head = Head(200, {}, framing="length" if framing == "length" else "close")
    upstream.on("m", head, Send(b"ab"), Send(b"c"))
    with open_stream(upstream.url, body=BODY) as answer:
        assert answer.read() == b"abc"
        assert answer.ended == ("length" if framing == "length" else "fin")


@pytest.mark.parametrize("wait", [Gate("never"), Pause(60)], ids=["gate", "pause"])
def test_a_peer_that_hangs_up_while_waiting_is_noticed(upstream: ScriptedUpstream, wait: Step) -> None:
    upstream.on("m", Head(), *sse("data: 1\n\n"), Gate("open"), wait, *sse("data: 2\n\n"))
    upstream.open("open")
    with open_stream(upstream.url, body=BODY) as answer:
        assert [event.data for event in answer.take(1)] == ["1"]
    assert upstream.calls[0].ended.wait(5)
    assert upstream.calls[0].cancelled


def test_a_gate_holds_until_it_is_opened(upstream: ScriptedUpstream) -> None:
    upstream.on("m", *stream(Gate("g"), "data: 1\n\n"))
    with open_stream(upstream.url, body=BODY) as answer:
        upstream.wait_reached("g", 5)
        assert answer.raw_body == b""
        upstream.open("g")
        assert [event.data for event in answer] == ["1"]


def test_no_script_is_a_json_404(upstream: ScriptedUpstream) -> None:
    with open_stream(upstream.url + "/v1/nothing", "GET") as answer:
        assert answer.status == 404
        assert json.loads(answer.read())["error"]["code"] == "no_script"


def test_stopping_ends_what_still_waits() -> None:
    server = ScriptedUpstream().start()
    server.on("m", Head(), Gate("never"))
    with open_stream(server.url, body=BODY) as answer:
        server.wait_reached("never", 5)
        server.stop()
        assert list(answer) == []
        assert answer.ended in ("fin", "reset")
