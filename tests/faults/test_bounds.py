"""Bounds: on events, streams, readers and owners, on slow and vanished readers, and on what an upstream may do.

Nothing that goes wrong looks like a success, nothing is held for ever, and memory stays bounded.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Relays
from tests.support.asking import answers, ask
from tests.support.oracle import DONE, PATH, check, error_code, frame, word
from tests.support.processes import RelayProcess, rss
from tests.support.replicas import stream_id, two_replicas
from tests.support.scripted import Call, End, Gate, Head, Pause, ScriptedUpstream, Send, Step, stream
from tests.support.site import Site
from tests.support.sseclient import RawEvent, RawStream
from tests.support.waiting import wait_until

STREAMS = {
    "heartbeat": "200ms",
    "lease": "2s",
    "patience": "5s",
    "upstream_idle_timeout": "1s",
    "upstream_answer_timeout": "1s",
    "max_event_bytes": "64KiB",
    "max_stream_bytes": "8MiB",
    "max_duration": "60s",
}
AUTH = {"authorization": "Bearer sk-bounds"}
WRITE_TIMEOUT = 2.0
EVENT_STREAM = Head(200, {"content-type": "text/event-stream"})


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream, RelayProcess(config(upstream, STREAMS)) as relay:
        yield Site(upstream, relay)


def config(upstream: ScriptedUpstream, settings: Mapping[str, str], **limits: int) -> dict[str, Any]:
    return {
        "upstreams": [{"name": "scripted", "base_url": upstream.url, "malformed": "end"}],
        "streams": dict(settings),
        "limits": {"write_timeout": f"{WRITE_TIMEOUT:g}s", **limits},
    }


def post(relay: RelayProcess, model: str, headers: Mapping[str, str] = AUTH) -> RawStream:
    return ask(relay.url + PATH, headers=headers, body={"model": model, "stream": True, "messages": []})


def read(relay: RelayProcess, stream: str, headers: Mapping[str, str] = AUTH) -> RawStream:
    return ask(f"{relay.url}/streams/{stream}", "GET", headers)


def outcome(relay: RelayProcess, stream: str) -> str:
    return str(read(relay, stream, {**AUTH, "accept": "application/json"}).json["outcome"])


def sockets(relay: RelayProcess) -> int:
    found = 0
    for descriptor in Path(f"/proc/{relay.pid}/fd").iterdir():
        try:
            found += os.readlink(descriptor).startswith("socket:")
        except FileNotFoundError:
            continue
    return found


def big(n: int, size: int = 16384) -> bytes:
    """Event n of so many bytes; its text says its number first."""
    delta = {"content": word(n) + "x" * size}
    chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


def texts(events: list[RawEvent]) -> list[str]:
    return [e.json["choices"][0]["delta"]["content"].rstrip("x") for e in events if e.data != "[DONE]"]


# -- what an upstream may do ----------------------------------------------------------------------------------

FAULTS: dict[str, tuple[tuple[Step, ...], int, str]] = {
    # name: what the upstream sends, how many events a client sees of it, the cause in the error frame
    "stall": ((EVENT_STREAM, Send(frame(1)), Gate("for-ever")), 1, "upstream_timeout"),
    "stall-inside-an-event": (
        (EVENT_STREAM, Send(frame(1) + frame(2)[:20]), Gate("for-ever")),
        1,
        "upstream_timeout",
    ),
    "malformed-json": (
        (EVENT_STREAM, Send(frame(1)), Send(b"data: {nonsense\n\n"), Gate("for-ever")),
        1,
        "upstream_malformed",
    ),
    "malformed-sse": (
        (EVENT_STREAM, Send(frame(1)), Send(b"<html>502 Bad Gateway</html>\n\n"), End()),
        1,
        "upstream_error",
    ),
    "binary": ((EVENT_STREAM, Send(frame(1)), Send(b"data: \x00\xff\xfe\n\n"), End()), 1, "upstream_malformed"),
    "10-MB-event": (
        (EVENT_STREAM, Send(frame(1)), Send(big(2, 10 << 20)), Gate("for-ever")),
        1,
        "event_too_large",
    ),
    "never-ending-event": (
        (EVENT_STREAM, Send(frame(1)), Send(b"data: "), *(Send(b"x" * 4096) for _ in range(2000)), Gate("for-ever")),
        1,
        "event_too_large",
    ),
    "an-event-of-many-lines": (
        (EVENT_STREAM, Send(frame(1)), *(Send(b"data: x\n" * 512) for _ in range(2000)), Gate("for-ever")),
        1,
        "event_too_large",
    ),
    "a-never-ending-comment": (
        (EVENT_STREAM, Send(frame(1)), Send(b":"), *(Send(b"x" * 4096) for _ in range(2000)), Gate("for-ever")),
        1,
        "event_too_large",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_upstreams_fault_has_its_cause(site: Site, fault: str) -> None:
    steps, events, cause = FAULTS[fault]
    site.upstream.on(fault, *steps)
    before = rss(site.relay.pid)
    answer = post(site.relay, fault)
    assert check(answer.events()) == (events, cause)
    assert answer.ended == "zero-chunk"
    assert outcome(site.relay, stream_id(answer)) == cause
    (call,) = site.upstream.calls_of(fault)
    assert call.ended.wait(3), "the upstream's connection is still open"
    assert rss(site.relay.pid) < before + (24 << 20)
    assert check(read(site.relay, stream_id(answer)).events()) == (events, cause)


def test_comments_alone_are_no_answer(site: Site) -> None:
    site.upstream.on("only-comments", EVENT_STREAM, Send(b": hello\n\n"), End())
    with post(site.relay, "only-comments") as answer:
        assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_disconnected")
        assert answer.headers["x-should-retry"] == "false"


def test_what_came_whole_before_a_fault_in_the_same_packet_is_kept(site: Site) -> None:
    site.upstream.on("same-packet", EVENT_STREAM, Send(frame(1) + frame(2) + b"data: " + b"x" * 70000), Gate("never"))
    assert check(post(site.relay, "same-packet").events()) == (2, "event_too_large")


def test_one_byte_at_a_time(site: Site) -> None:
    whole = frame(1) + frame(2) + DONE
    site.upstream.on("bytes", EVENT_STREAM, *(Send(bytes((byte,))) for byte in whole), End())
    assert check(post(site.relay, "bytes").events()) == (2, "done")


def test_a_byte_now_and_then_for_ever_meets_max_duration(relays: Relays, upstream: ScriptedUpstream) -> None:
    relay = relays.start(config(upstream, {**STREAMS, "max_duration": "2s"}))
    drip = tuple(step for _ in range(100) for step in (Send(b"x"), Pause(0.1)))
    upstream.on("drip", EVENT_STREAM, Send(frame(1)), Send(b"data: "), *drip)
    began = time.monotonic()
    answer = post(relay, "drip")
    assert check(answer.events()) == (1, "max_duration")
    assert 1.5 < time.monotonic() - began < 5
    assert_cancelled(upstream, "drip")
    assert outcome(relay, stream_id(answer)) == "max_duration"


def test_max_duration_before_the_upstream_has_answered(relays: Relays, upstream: ScriptedUpstream) -> None:
    """No stream was made, so the client gets an answer and not a dead connection."""
    relay = relays.start(config(upstream, {**STREAMS, "max_duration": "1s", "upstream_answer_timeout": "30s"}))
    upstream.on("mute", Gate("mute"))
    answer = post(relay, "mute")
    assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
    assert_cancelled(upstream, "mute")


def assert_cancelled(upstream: ScriptedUpstream, model: str) -> None:
    (call,) = upstream.calls_of(model)
    assert call.ended.wait(1.5), "the upstream call still runs"
    assert call.cancelled


def test_max_stream_bytes(relays: Relays, upstream: ScriptedUpstream) -> None:
    relay = relays.start(config(upstream, {**STREAMS, "max_stream_bytes": "100KiB"}))
    upstream.on("long", *stream(*(big(n) for n in range(1, 20)), Gate("long")))
    answer = post(relay, "long")
    events = answer.events()
    *payload, error, done = events
    assert texts(payload) == [word(n) for n in range(1, len(payload) + 1)]
    assert 3 < len(payload) <= 6
    assert (error_code(error), done.data) == ("stream_too_large", "[DONE]")
    assert_cancelled(upstream, "long")
    assert outcome(relay, stream_id(answer)) == "stream_too_large"


def test_no_answer_at_all(relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("silent", Gate("silent"))
    relay = relays.start(config(upstream, STREAMS))
    answer = post(relay, "silent")
    assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
    patient = relays.start(config(upstream, {**STREAMS, "patience": "100ms"}))
    answer = post(patient, "silent")
    assert check(answer.events()) == (0, "upstream_timeout")


# -- how many ---------------------------------------------------------------------------------------------------


def test_readers_per_stream(upstream: ScriptedUpstream) -> None:
    upstream.on("readers", *stream(frame(1), Gate("readers"), DONE))
    settings = {**config(upstream, {**STREAMS, "upstream_idle_timeout": "60s"}, readers_per_stream=3)}
    with two_replicas({k: v for k, v in settings.items() if k != "streams"}, settings["streams"]) as replicas:
        first = post(replicas[0], "readers")
        name = stream_id(first)
        for replica, more in ((replicas[0], 2), (replicas[1], 3)):
            there = [read(replica, name) for _ in range(more)]
            assert [answer.status for answer in there] == [200] * more
            refused = read(replica, name)
            assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_readers")
            assert int(refused.headers["retry-after"]) >= 1
            there[0].close()
            wait_until(lambda replica=replica: read(replica, name).status == 200, 5, "room for one more")  # type: ignore[misc]
        upstream.open("readers")
        assert check(first.events()) == (1, "done")


def test_readers_of_a_finished_stream_are_as_many(relays: Relays, upstream: ScriptedUpstream) -> None:
    """Each may have a page of it in memory, for as long as it takes to read it."""
    upstream.on("finished", *stream(*(big(n, 64 << 10) for n in range(1, 101)), DONE))
    streams = {**STREAMS, "max_event_bytes": "1MiB", "max_stream_bytes": "64MiB"}
    settings = config(upstream, streams, readers_per_stream=3)
    settings["limits"]["write_timeout"] = "60s"
    relay = relays.start(settings)
    answer = post(relay, "finished")
    assert len(answer.events()) == 101
    name = stream_id(answer)
    wait_until(lambda: outcome(relay, name) == "completed", 5)
    stuck = [slow_reader(relay, name) for _ in range(3)]
    try:
        for client in stuck:
            client.settimeout(5)
            assert client.recv(12) == b"HTTP/1.1 200"
        refused = read(relay, name)
        assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_readers")
        assert int(refused.headers["retry-after"]) >= 1
        stuck[0].close()
        wait_until(lambda: read(relay, name).status == 200, 5, "room for one more")
    finally:
        for client in stuck:
            client.close()


def test_streams_per_owner(relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("owned", *stream(frame(1), Gate("owned"), DONE))
    upstream.on("brief", *stream(frame(1), DONE))
    relay = relays.start(config(upstream, {**STREAMS, "upstream_idle_timeout": "60s"}, streams_per_owner=2))
    mine = [post(relay, "owned") for _ in range(2)]
    refused = post(relay, "owned")
    assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_streams")
    assert int(refused.headers["retry-after"]) >= 1
    assert check(post(relay, "brief", {"authorization": "Bearer sk-other"}).events()) == (1, "done")
    assert ask(f"{relay.url}/streams/{stream_id(mine[0])}", "DELETE", AUTH).status == 204
    wait_until(lambda: post(relay, "brief").status == 200, 3, "room for one more")
    assert len(upstream.calls_of("owned")) == 2


def test_streams(relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("many", *stream(frame(1), Gate("many"), DONE))
    relay = relays.start(config(upstream, {**STREAMS, "upstream_idle_timeout": "60s"}, streams=2))
    there = [post(relay, "many", {"authorization": f"Bearer sk-{n}"}) for n in range(2)]
    refused = post(relay, "many", {"authorization": "Bearer sk-9"})
    assert (refused.status, refused.json["error"]["code"]) == (503, "too_busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert read(relay, stream_id(there[0]), {"authorization": "Bearer sk-0"}).status == 200
    upstream.open("many")
    assert [check(answer.events()) for answer in there] == [(1, "done")] * 2
    assert len(upstream.calls_of("many")) == 2


def test_a_refused_request_takes_no_room(relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("no", Head(429, framing="length"), Send(b"{}"))
    relay = relays.start(config(upstream, STREAMS, streams=2, streams_per_owner=2))
    assert [post(relay, "no").status for _ in range(6)] == [429] * 6
    assert all(json.loads(answer.read()) == {} for answer in answers)


# -- readers that do not read -------------------------------------------------------------------------------------


def slow_reader(relay: RelayProcess, name: str) -> socket.socket:
    """A client that asks and then takes nothing, with next to no room for what comes."""
    host, _, port = relay.url.removeprefix("http://").rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    request = f"GET /streams/{name} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n\r\n"
    client.sendall(request.encode())
    return client


def drop_all_packets(connection: socket.socket) -> None:
    """From now on this socket is a peer that has vanished: it acknowledges nothing and says nothing."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # a classic BPF: "return 0"
    so_attach_filter = 26
    connection.setsockopt(socket.SOL_SOCKET, so_attach_filter, struct.pack("HL", 1, ctypes.addressof(program)))


def keep_going(count: int, gate: str) -> tuple[Step, ...]:
    """Large events every 5 ms, then a wait: more than any buffer on the way takes in."""
    steps = [step for n in range(1, count + 1) for step in (Send(big(n)), Pause(0.005))]
    return (EVENT_STREAM, *steps, Gate(gate), Send(DONE), End())


@pytest.mark.parametrize("where", [0, 1], ids=["producing-replica", "other-replica"])
def test_a_reader_that_never_reads_is_dropped_and_slows_nobody(upstream: ScriptedUpstream, where: int) -> None:
    count = 400
    upstream.on("flood", *keep_going(count, "flood"))
    settings = config(upstream, {**STREAMS, "upstream_idle_timeout": "60s", "max_stream_bytes": "64MiB"})
    both = {k: v for k, v in settings.items() if k != "streams"}
    with two_replicas(both, settings["streams"], settings["streams"]) as replicas:
        relay = replicas[where]
        answer = post(replicas[0], "flood")
        good = answer if where == 0 else read(relay, stream_id(answer))
        if where == 1:
            threading.Thread(target=answer.read, daemon=True).start()
        first = good.events(1)  # by now the relay has opened all that it needs for itself
        idle, memory = sockets(relay), rss(relay.pid)
        stuck = [slow_reader(relay, stream_id(answer)) for _ in range(8)]
        try:
            began = time.monotonic()
            events = first + good.events(count - 1)
            took = time.monotonic() - began
            assert texts(events) == [word(n) for n in range(1, count + 1)]
            wait_until(lambda: sockets(relay) <= idle, WRITE_TIMEOUT + 6, "the readers that read nothing are dropped")
            assert took < 20
            # The producer holds its stream whole (6.5 MB); 8 readers hold a write and a buffer each.
            assert rss(relay.pid) < memory + (48 << 20)
            upstream.open("flood")
            assert [e.data for e in good.events()] == ["[DONE]"]
        finally:
            for client in stuck:
                client.close()


def test_a_reader_that_has_vanished_is_dropped(relays: Relays, upstream: ScriptedUpstream) -> None:
    """Its machine lost power: no FIN, no RST, no acknowledgement. Heartbeats find out."""
    upstream.on("vanished", *stream(frame(1), Gate("vanished"), frame(2), DONE))
    relay = relays.start(config(upstream, {**STREAMS, "upstream_idle_timeout": "60s"}))
    answer = post(relay, "vanished")
    seen = answer.events(1)
    before = sockets(relay)
    gone = read(relay, stream_id(answer))
    gone.events(1)
    drop_all_packets(gone._socket)
    wait_until(lambda: sockets(relay) > before, 5)
    wait_until(lambda: sockets(relay) <= before, WRITE_TIMEOUT + 6, "the vanished reader is dropped")
    upstream.open("vanished")
    assert check(seen + answer.events()) == (2, "done")


def test_a_vanished_reader_does_not_keep_its_generation(relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("alone", *stream(frame(1), Gate("alone")))
    relay = relays.start(config(upstream, {**STREAMS, "upstream_idle_timeout": "60s", "abandon_after": "1s"}))
    answer = post(relay, "alone")
    answer.events(1)
    drop_all_packets(answer._socket)
    call: Call = upstream.calls_of("alone")[0]
    assert call.ended.wait(30), "the generation goes on for a reader that is gone"
    assert outcome(relay, stream_id(answer)) == "abandoned"


def test_a_slow_but_living_reader_is_not_dropped(site: Site) -> None:
    """Whoever takes something now and then gets all of it."""
    site.upstream.on("slow", *stream(*(big(n) for n in range(1, 61)), DONE))
    answer = post(site.relay, "slow")
    name = stream_id(answer)
    answer.close()
    client = slow_reader(site.relay, name)
    client.settimeout(10)
    got = b""
    try:
        while b"[DONE]" not in got[-400:]:
            piece = client.recv(65536)
            assert piece, "the relay hung up on a reader that reads"
            got += piece
            time.sleep(0.02)
    finally:
        client.close()
    assert got.count(b"chat.completion.chunk") == 60


def test_nothing_is_left_behind(relays: Relays, upstream: ScriptedUpstream) -> None:
    """After every kind of fault and leaving, the relay has no more sockets and hardly more memory than before."""
    relay = relays.start(config(upstream, {**STREAMS, "abandon_after": "0s"}))
    for name, (steps, _, _) in FAULTS.items():
        upstream.on(name, *steps)
    post(relay, "end-without-terminal").events()
    before, memory = sockets(relay), rss(relay.pid)
    for name in ("reset-inside-an-event", "end-without-terminal", "malformed-json", "10-MB-event", "stall") * 4:
        post(relay, name).events(1)
        answers.pop().close()
    wait_until(lambda: sockets(relay) <= before, 10, "all connections closed")
    assert rss(relay.pid) < memory + (40 << 20)


def test_a_relay_takes_all_descriptors_that_it_may_have(relays: Relays, upstream: ScriptedUpstream) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        relay = relays.start({"upstreams": [{"name": "scripted", "base_url": upstream.url}]})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (limits,) = [line for line in Path(f"/proc/{relay.pid}/limits").read_text().splitlines() if "open files" in line]
    assert limits.split()[3:5] == [str(hard)] * 2
