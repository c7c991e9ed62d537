"""A relay that drains: whom it still answers, what it says to them, and that nothing which was on its way is lost."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.h2client import H2Client
from tests.support.clients import TOKEN
from tests.support.oracle import PATH, check
from tests.support.pooled import Pooled
from tests.support.processes import RelayProcess
from tests.support.replicas import SLACK, paced, post, replicas, settings
from tests.support.scripted import Gate, ScriptedUpstream, json_response
from tests.support.sseclient import open_stream
from tests.support.stores import Store, valkey_server
from tests.support.waiting import wait_until

AUTH = {"authorization": f"Bearer {TOKEN}"}
BODY = {"model": "m", "messages": [], "stream": True}
REFUSED_STREAM = 7


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path / "store", unix=True) as server:
        yield server


def refuses(relay: RelayProcess) -> bool:
    """Is nobody listening on its address?"""
    host, port = address(relay)
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def address(relay: RelayProcess) -> tuple[str, int]:
    parts = urlsplit(relay.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def request(body: dict[str, object] = BODY) -> bytes:
    payload = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\ncontent-length: {len(payload)}"
    )
    return head.encode() + b"\r\n\r\n" + payload


def kept_alive(relay: RelayProcess) -> http.client.HTTPConnection:
    """A connection that has had an answer and may be used again."""
    connection = http.client.HTTPConnection(*address(relay), timeout=20)
    connection.request("GET", "/livez")
    answer = connection.getresponse()
    assert answer.read() == b'{"status":"ok"}'
    assert answer.getheader("connection") is None
    return connection


@pytest.mark.parametrize("workers", [1, 2])
def test_new_connections_are_refused_and_idle_ones_closed_while_streams_run_on(
    upstream: ScriptedUpstream, store: Store, workers: int
) -> None:
    upstream.on("m", *paced(20, 0, gate_after=10))
    with replicas(1, settings(upstream, store, drain={"timeout": "60s"}, workers=workers)) as (leaving,):
        streams = [post(leaving, "m") for _ in range(6)]
        seen = [answer.events(10) for answer in streams]
        idle = [kept_alive(leaving) for _ in range(6)]
        leaving.signal(signal.SIGTERM)
        wait_until(lambda: refuses(leaving), SLACK, "the listener's end")
        for connection in idle:
            assert connection.sock.recv(1) == b""
            connection.close()
        assert leaving.returncode is None
        upstream.open("gate")
        for answer, events in zip(streams, seen, strict=True):
            assert check(events + answer.events()) == (20, "done")
            assert answer.ended == "zero-chunk"
        assert leaving.wait(15) == 0


def test_every_answer_is_its_connections_last(upstream: ScriptedUpstream, store: Store) -> None:
    """What was asked before the drain and is answered in it says so; a stream that had begun ends its connection."""
    upstream.on("m", *paced(4, 0, gate_after=2, gate="stream"))
    upstream.on_path("GET /v1/slow", Gate("slow"), *json_response(200, {"slow": True}))
    with replicas(1, settings(upstream, store, drain={"timeout": "60s"})) as (leaving,):
        asked = http.client.HTTPConnection(*address(leaving), timeout=20)
        asked.request("GET", "/v1/slow", headers=AUTH)
        upstream.wait_reached("slow")
        begun = http.client.HTTPConnection(*address(leaving), timeout=20)
        begun.request("POST", PATH, json.dumps(BODY), AUTH)
        stream = begun.getresponse()
        assert stream.getheader("connection") is None
        with closing(asked), closing(begun):
            leaving.signal(signal.SIGTERM)
            wait_until(lambda: refuses(leaving), SLACK, "the listener's end")
            upstream.open("slow")
            answer = asked.getresponse()
            assert (answer.status, answer.getheader("connection")) == (200, "close")
            assert json.loads(answer.read()) == {"slow": True}
            upstream.open("stream")
            assert stream.read().endswith(b"data: [DONE]\n\n")
            assert begun.sock.recv(1) == b""
        assert leaving.wait(15) == 0


def test_an_answer_that_is_no_stream_is_finished_too(upstream: ScriptedUpstream, store: Store) -> None:
    upstream.on_path("GET /v1/slow", Gate("slow"), *json_response(200, {"slow": True}))
    with replicas(1, settings(upstream, store, drain={"timeout": "60s"})) as (leaving,):
        with closing(http.client.HTTPConnection(*address(leaving), timeout=20)) as asked:
            asked.request("GET", "/v1/slow", headers=AUTH)
            upstream.wait_reached("slow")
            leaving.signal(signal.SIGTERM)
            with pytest.raises(TimeoutError):
                wait_until(lambda: leaving.returncode is not None, 5, "the end of a relay that has to answer yet")
            upstream.open("slow")
            assert json.loads(asked.getresponse().read()) == {"slow": True}
        assert leaving.wait(15) == 0


def test_what_was_on_its_way_is_served(upstream: ScriptedUpstream, store: Store) -> None:
    """Connections that the kernel has accepted, with requests that the relay has not seen when it is told to end."""
    upstream.on("m", *paced(4, 0))
    with replicas(1, settings(upstream, store, drain={"timeout": "60s"})) as (leaving,):
        used = kept_alive(leaving)
        leaving.signal(signal.SIGSTOP)
        try:
            fresh = [socket.create_connection(address(leaving), 20) for _ in range(20)]
            for connection in [*fresh, used.sock]:
                connection.sendall(request())
            leaving.signal(signal.SIGTERM)
        finally:
            leaving.signal(signal.SIGCONT)
        for connection in [*fresh, used.sock]:
            with connection, connection.makefile("rb") as answer:
                whole = answer.read()
            head, _, body = whole.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"[DONE]" in body
            assert body.endswith(b"0\r\n\r\n")
        assert leaving.wait(15) == 0
        assert len(upstream.calls) == 21


@pytest.mark.parametrize("workers", [1, 2])
def test_clients_with_pools_do_not_notice_that_replicas_come_and_go(
    upstream: ScriptedUpstream, store: Store, workers: int
) -> None:
    """Not one refusal, no dropped connection, no upstream call too many."""
    upstream.on("m", *paced(5, 0.005))
    with replicas(3, settings(upstream, store, drain={"timeout": "60s"}, workers=workers)) as trio:
        with Pooled([relay.url for relay in trio], 8) as pooled:
            for relay in trio:
                before = pooled.seen["whole"]
                wait_until(lambda at=before: pooled.seen["whole"] > at + 50, 30, "answers")
                relay.signal(signal.SIGTERM)
                assert relay.wait(30) == 0
                relay.start()
        assert pooled.seen == {"whole": len(upstream.calls)}


def test_who_loses_its_connection_comes_back_on_another_replica(upstream: ScriptedUpstream, store: Store) -> None:
    upstream.on("m", *paced(20, 0, gate_after=10))
    config = settings(upstream, store, {"abandon_after": "2s"}, drain={"timeout": "60s"})
    with replicas(2, config) as (leaving, staying):
        answer = post(leaving, "m")
        seen = answer.events(10)
        leaving.signal(signal.SIGTERM)
        wait_until(lambda: refuses(leaving), SLACK, "the listener's end")
        answer.close(reset=True)
        with post(staying, "m", seen[6].id) as resumed:
            again = resumed.events(3)
            assert [event.raw for event in again] == [event.raw for event in seen[7:]]
            assert leaving.returncode is None
            upstream.open("gate")
            assert check(seen + resumed.events()) == (20, "done")
        assert leaving.wait(15) == 0
        assert len(upstream.calls) == 1


def test_with_a_store_of_its_own_it_goes_on_listening_for_its_readers(upstream: ScriptedUpstream) -> None:
    """No other relay has its streams: a reader that lost its connection has nowhere else to go."""
    upstream.on("m", *paced(20, 0, gate_after=10))
    with replicas(1, settings(upstream, None, drain={"timeout": "60s"})) as (leaving,):
        answer = post(leaving, "m")
        seen = answer.events(10)
        with closing(kept_alive(leaving)) as idle:
            leaving.signal(signal.SIGTERM)
            assert idle.sock.recv(1) == b""

        def unready() -> bool:
            with open_stream(f"{leaving.url}/readyz", "GET") as ready:
                return (ready.status, ready.headers.get("connection")) == (503, "close")

        wait_until(unready, SLACK, "unreadiness")
        answer.close(reset=True)
        with post(leaving, "m") as refused:
            assert (refused.status, refused.json["error"]["code"]) == (503, "draining")
            assert refused.headers["connection"] == "close"
        with post(leaving, "m", seen[6].id) as resumed:
            assert resumed.headers["connection"] == "close"
            upstream.open("gate")
            assert check(seen[:7] + resumed.events()) == (20, "done")
        assert leaving.wait(15) == 0
        assert len(upstream.calls) == 1


class TestHttp2:
    def test_a_client_is_told_its_streams_run_on_and_further_ones_are_refused(
        self, upstream: ScriptedUpstream, store: Store
    ) -> None:
        upstream.on("m", *paced(20, 0, gate_after=10))
        with (
            replicas(1, settings(upstream, store, drain={"timeout": "60s"})) as (leaving,),
            H2Client(leaving.url) as client,
        ):
            running = [client.send("POST", PATH, AUTH, BODY) for _ in range(3)]
            client.until(lambda: all(len(answer.events()) >= 10 for answer in running))
            leaving.signal(signal.SIGTERM)
            client.until(lambda: len(client.goaways) == 2)
            assert client.goaways == [(1 << 31) - 1, running[-1].number]
            late = client.send("POST", PATH, AUTH, BODY)
            client.until(lambda: late.ended is not None)
            assert (late.ended, late.reset_code) == ("reset", REFUSED_STREAM)
            upstream.open("gate")
            client.until(lambda: all(answer.ended for answer in running))
            for answer in running:
                assert answer.ended == "end"
                assert check(answer.events()) == (20, "done")
            client.until(lambda: client.goodbye)
            assert leaving.wait(15) == 0
            assert len(upstream.calls) == 3

    def test_an_idle_connection_is_told_and_closed(self, upstream: ScriptedUpstream, store: Store) -> None:
        upstream.on("m", *paced(20, 0, gate_after=10))
        config = settings(upstream, store, drain={"timeout": "60s"})
        with replicas(1, config) as (leaving,), H2Client(leaving.url) as client:
            answer = client.send("GET", "/livez", {})
            client.until(lambda: answer.ended == "end")
            with post(leaving, "m") as stream:
                seen = stream.events(10)
                leaving.signal(signal.SIGTERM)
                client.until(lambda: client.goodbye)
                assert client.goaways[:2] == [(1 << 31) - 1, answer.number]
                upstream.open("gate")
                assert check(seen + stream.events()) == (20, "done")
            assert leaving.wait(15) == 0

    def test_what_was_on_its_way_is_served(self, upstream: ScriptedUpstream, store: Store) -> None:
        upstream.on("m", *paced(4, 0))
        config = settings(upstream, store, drain={"timeout": "60s"})
        with replicas(1, config) as (leaving,), H2Client(leaving.url) as client:
            leaving.signal(signal.SIGSTOP)
            try:
                answers = [client.send("POST", PATH, AUTH, BODY) for _ in range(20)]
                leaving.signal(signal.SIGTERM)
            finally:
                leaving.signal(signal.SIGCONT)
            client.until(lambda: all(answer.ended for answer in answers))
            for answer in answers:
                assert (answer.status, answer.ended) == (200, "end")
                assert check(answer.events()) == (4, "done")
            client.until(lambda: client.goodbye)
            assert leaving.wait(15) == 0
