"""`limits.write_timeout` drops a client that takes nothing, and none that takes little, whatever an event weighs."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.h2client import H2Client
from tests.support.asking import ask
from tests.support.oracle import DONE, PATH
from tests.support.processes import RelayProcess, rss
from tests.support.replicas import stream_id, two_replicas
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.site import PairSite
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

AUTH = {"authorization": "Bearer sk-slow"}
MEGABYTE = 1 << 20
SIZE = 6 * MEGABYTE
BIG = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * SIZE)
WRITE_TIMEOUT = 2.0


@dataclass(frozen=True)
class Site(PairSite):
    name: str


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A stream of three events of 6 MiB, live, on both replicas."""
    with ScriptedUpstream() as upstream:
        upstream.on("big", *stream(BIG, BIG, BIG, Gate("big"), DONE))
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "limits": {"write_timeout": f"{WRITE_TIMEOUT}s"},
        }
        streams = {"max_event_bytes": "16MiB", "abandon_after": "never"}
        with two_replicas(config, streams, streams) as replicas:
            body = {"model": "big", "stream": True, "messages": []}
            headers = {**AUTH, "prefer": "respond-async"}
            with ask(replicas.first.url + PATH, headers=headers, body=body) as accepted:
                name = stream_id(accepted)
            for replica in (replicas.first, replicas.second):
                with connect(replica, name, MEGABYTE) as client:
                    take(client, 3 * SIZE)
            yield Site(upstream, replicas, name)


def connect(relay: RelayProcess, name: str, buffer: int) -> socket.socket:
    host, _, port = relay.url.removeprefix("http://").rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(10)
    client.connect((host, int(port)))
    head = f"GET /streams/{name} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n\r\n"
    client.sendall(head.encode())
    return client


def take(client: socket.socket, size: int) -> None:
    while size > 0:
        part = client.recv(MEGABYTE)
        assert part, f"dropped {size} bytes before the end"
        size -= len(part)


@pytest.mark.parametrize("where", [0, 1], ids=["producing-replica", "other-replica"])
def test_who_takes_little_gets_all_of_an_event_of_any_size(site: Site, where: int) -> None:
    """Several write time-outs pass before one event is out; what the kernel holds for it moves all the while."""
    with connect(site.replicas[where], site.name, 64 << 10) as client:
        got = 0
        until = time.monotonic() + 4 * WRITE_TIMEOUT
        while time.monotonic() < until:
            part = client.recv(16 << 10)
            assert part, f"dropped after {got} bytes"
            got += len(part)
            time.sleep(0.05)
        assert got < SIZE, "it was not slow"
        take(client, 3 * SIZE - got)


def test_over_http2_too(site: Site) -> None:
    with H2Client(site.replicas.first.url) as client:
        answer = client.send("GET", f"/streams/{site.name}", AUTH, hold=True)
        client.until(lambda: len(answer.body) >= 65535)
        until = time.monotonic() + 4 * WRITE_TIMEOUT
        while time.monotonic() < until:
            seen = len(answer.body)
            client.give_room(answer, 1000)
            client.until(lambda seen=seen: len(answer.body) >= seen + 1000 or answer.ended is not None)  # type: ignore[misc]
            assert answer.ended is None
            time.sleep(0.3)
        began = time.monotonic()
        client.until(lambda: answer.ended is not None)
        assert answer.ended == "reset"
        assert time.monotonic() - began < 3 * WRITE_TIMEOUT


def served(relay: RelayProcess, clients: list[socket.socket]) -> int:
    """How many of the connections the relay still holds: the kernel alone may hold on to others for a while."""
    port = int(relay.url.rpartition(":")[2])
    theirs = {client.getsockname()[1] for client in clients}
    held = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        here, there = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
        held += here == port and there in theirs and fields[9] != "0"
    return held


@pytest.mark.parametrize("where", [0, 1], ids=["producing-replica", "other-replica"])
def test_who_takes_nothing_is_dropped(site: Site, where: int) -> None:
    relay = site.replicas[where]
    stuck = [connect(relay, site.name, 16 << 10) for _ in range(8)]
    try:
        wait_until(lambda: served(relay, stuck) == 8, 5, "they are connected")
        wait_until(lambda: served(relay, stuck) == 0, 3 * WRITE_TIMEOUT + 6, "they are dropped")
    finally:
        for client in stuck:
            client.close()


def test_who_takes_nothing_holds_no_copy_of_what_is_in_memory(site: Site) -> None:
    relay = site.replicas.first
    before = rss(relay.pid)
    stuck = [connect(relay, site.name, 16 << 10) for _ in range(8)]
    try:
        until = time.monotonic() + WRITE_TIMEOUT / 2
        most = 0
        while time.monotonic() < until:
            most = max(most, rss(relay.pid) - before)
        assert most < 8 * MEGABYTE
    finally:
        for client in stuck:
            client.close()
