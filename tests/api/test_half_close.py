"""A client that closes only its sending side gets its answer; one that has gone is noticed at once all the same."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.samples import SAMPLES
from tests.support.scripted import Gate, Head, Pause, Send, json_response, stream
from tests.support.site import Site, one_relay
from tests.support.streams import APIS, Api

each_api = pytest.mark.parametrize("api", APIS)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with one_relay(streams={"abandon_after": "0s", "heartbeat": "60s"}) as site:
        yield site


def sent(site: Site, path: str, headers: dict[str, str], body: object, *, version: str = "1.1") -> socket.socket:
    """A whole request on a connection of its own."""
    host, _, port = site.relay.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    raw = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: relay", f"content-length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() != "content-length"]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + raw)
    return connection


def all_of(connection: socket.socket) -> bytes:
    answer = b""
    while data := connection.recv(65536):
        answer += data
    return answer


@each_api
@pytest.mark.parametrize("silence", [0.0, 0.4], ids=["at once", "after a while"])
def test_a_stream_is_answered_to_its_end(site: Site, api: Api, silence: float) -> None:
    sample = SAMPLES[api]
    model = f"half-{api}-{silence}"
    first, *others = sample.frames
    site.upstream.on(model, *stream(first, Pause(0.3), *others, pause_before=silence))
    with sent(site, sample.path, sample.headers(), sample.body(model)) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = all_of(connection)
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert b"HTTP/1.1 200" in answer
    assert answer.count(b"\nid: ") == len(sample.events)
    assert not site.upstream.calls_of(model)[0].cancelled


@each_api
def test_so_is_one_that_is_closed_in_the_middle(site: Site, api: Api) -> None:
    sample = SAMPLES[api]
    first, *others = sample.frames
    site.upstream.on(f"mid-{api}", *stream(first, Gate(f"mid-{api}"), *others))
    with sent(site, sample.path, sample.headers(), sample.body(f"mid-{api}")) as connection:
        site.upstream.wait_reached(f"mid-{api}")
        answer = b""
        while b"\nid: " not in answer:
            answer += connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        site.upstream.open(f"mid-{api}")
        answer += all_of(connection)
    assert answer.endswith(b"\r\n0\r\n\r\n")


def test_so_is_a_request_that_is_passed_through(site: Site) -> None:
    whole = json_response(200, {"id": "x"})
    site.upstream.on("half-passed", Pause(0.3), *whole)
    with sent(site, "/v1/chat/completions", {}, {"model": "half-passed"}) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert all_of(connection).endswith(b'{"id": "x"}')


@each_api
@pytest.mark.parametrize("begun", [False, True], ids=["before its answer", "in its answer"])
def test_who_has_gone_is_noticed_though_nothing_is_sent(site: Site, api: Api, begun: bool) -> None:
    sample = SAMPLES[api]
    model = f"gone-{api}-{begun}"
    steps = stream(sample.frames[0], Gate(model)) if begun else (Gate(model), Head(), Send(b""))
    site.upstream.on(model, *steps)
    with sent(site, sample.path, sample.headers(), sample.body(model)) as connection:
        site.upstream.wait_reached(model)
        answer = b""
        while begun and b"\nid: " not in answer:
            answer += connection.recv(65536)
    (call,) = site.upstream.calls_of(model)
    assert call.ended.wait(2), "the upstream's call goes on for nobody"
    assert call.cancelled
