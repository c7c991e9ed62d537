"""Peers that do not read, and peers that send what costs work and brings nothing: what they can hold, and for how long.

Each attack is tried on a relay that lacks the defence against it, too, where it succeeds.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import hpack
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.security.undefended_relay import without
from tests.security.wire import AUTH, request
from tests.support.oracle import DONE, PATH, frame
from tests.support.processes import RelayProcess, needs, rss
from tests.support.scripted import End, Gate, Head, Pause, ScriptedUpstream, Send, stream
from tests.support.site import Site
from tests.support.sseclient import RawStream, open_stream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

WRITE = 2.0
SLACK = 8.0
"""How late a time-out may be on a busy machine."""
MIB = 1 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALM = 11
NEVER = {"limits": {"write_timeout": "1h"}}


@contextmanager
def relay_of(*lacking: str, **config: Any) -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream(*(frame(n) for n in range(1000)), DONE))
        upstream.on("open", *stream(*(step for n in range(2000) for step in (frame(n), Pause(0.05))), Gate("never")))
        upstream.on_path(
            "GET /v1/files/f/content",
            Head(200, {"content-type": "application/octet-stream"}, "length"),
            Send(b"z" * MIB),
            End(),
        )
        settings = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "playground": True,
            "streams": {"abandon_after": "never"},
            **config,
        }
        with RelayProcess(settings, without(*lacking)) as relay:
            yield Site(upstream, relay)


@dataclass
class Peer:
    """A peer of HTTP/2 that sends what it is told, lets the relay send what it says, and counts frames."""

    url: str
    window: int = 0
    """Of each stream."""
    connection_window: int = (1 << 31) - 1
    buffer: int | None = None
    """Of the kernel, for what is not read."""
    frames: list[Frame] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self._socket = socket.socket()
        if self.buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        self._socket.settimeout(20)
        parts = urlsplit(self.url)
        self._socket.connect((parts.hostname, parts.port))
        self._encoder = hpack.Encoder()
        self._number = -1
        self._rest = b""
        more = self.connection_window - 65535
        self.send(
            PREFACE
            + SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: self.window}).serialize()
            + SettingsFrame(0, flags=["ACK"]).serialize()
            + (WindowUpdateFrame(0, window_increment=more).serialize() if more else b"")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, path: str, body: object = None, count: int = 1, *more: tuple[bytes, bytes]) -> list[int]:
        data, numbers = b"", []
        for _ in range(count):
            self._number += 2
            numbers.append(self._number)
            head = self._encoder.encode(request(b"GET" if body is None else b"POST", path.encode(), *more))
            flags = ["END_HEADERS", *(["END_STREAM"] if body is None else [])]
            data += HeadersFrame(self._number, data=head, flags=flags).serialize()
            if body is not None:
                data += DataFrame(self._number, data=json.dumps(body).encode(), flags=["END_STREAM"]).serialize()
        self.send(data)
        return numbers

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except (ConnectionError, TimeoutError):
            self.closed = True

    def hear(self, seconds: float = 0.05) -> None:
        """What has come until now, and comes in the next seconds."""
        until = time.monotonic() + seconds
        while not self.closed and (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(MIB)
            except TimeoutError:
                break
            except ConnectionError:
                data = b""
            self.closed = not data
            self._rest += data
            while len(self._rest) >= 9:
                found, length = Frame.parse_frame_header(memoryview(self._rest[:9]))
                if len(self._rest) < 9 + length:
                    break
                found.parse_body(memoryview(self._rest[9 : 9 + length]))
                self._rest = self._rest[9 + length :]
                self.frames.append(found)
        self._socket.settimeout(20)

    def heard(self) -> bool:
        """Hear what comes, as a part of a condition that it may bring about."""
        self.hear()
        return False

    def numbers(self, kind: type[Frame]) -> set[int]:
        return {found.stream_id for found in self.frames if isinstance(found, kind)}

    @property
    def goodbye(self) -> int | None:
        return next((found.error_code for found in self.frames if isinstance(found, GoAwayFrame)), None)


def finished(site: Site) -> str:
    """The id of a stream that can be replayed."""
    body = {"model": "m", "stream": True, "messages": []}
    with open_stream(site.relay.url + PATH, headers=AUTH, body=body) as answer:
        answer.read()
        return answer.headers["relay-stream-id"]


# -- the write limit --------------------------------------------------------------------------------------------------

CHAT = {"model": "open", "stream": True, "messages": []}
ANSWERS: dict[str, tuple[str, object, list[tuple[bytes, bytes]]]] = {
    "a file": ("/v1/files/f/content", None, []),
    "its own description": ("/openapi.json", None, []),
    "the client": ("/client/resuming-fetch.js", None, []),
    "the playground": ("/playground", None, []),
    "health": ("/livez", None, []),
    "an error": ("/v1//x", None, []),
    "nothing there": ("/nowhere", None, []),
    "a replay": ("/streams/{stream}", None, []),
    "a live stream": (PATH, CHAT, []),
    "a stream that is told later": (PATH, CHAT, [(b"prefer", b"respond-async")]),
    "a refusal of a body": (PATH, [], []),
}


def unread(site: Site, peer: Peer) -> dict[int, str]:
    """Ask for every kind of answer. The streams that have one."""
    path_of = finished(site)
    asked = {}
    for kind, (path, body, more) in ANSWERS.items():
        (number,) = peer.ask(path.format(stream=path_of), body, 1, *more)
        asked[number] = kind
    wait_until(lambda: peer.heard() or len(peer.numbers(HeadersFrame)) >= len(asked), 20, "all are answered")
    return asked


@pytest.mark.parametrize("window", ["of the stream", "of the connection"])
def test_the_write_limit_holds_for_every_answer(window: str) -> None:
    with relay_of(limits={"write_timeout": f"{WRITE}s"}) as site:
        own = window == "of the stream"
        with Peer(site.relay.url, 0 if own else MIB, (1 << 31) - 1 if own else 65535) as peer:
            filling = set() if own else set(peer.ask("/v1/files/f/content"))
            wait_until(lambda: own or peer.heard() or peer.numbers(DataFrame), 20, "the window is closed")
            peer.hear(0.5)
            began = time.monotonic()
            asked = set(unread(site, peer)) | filling
            wait_until(
                lambda: peer.heard() or peer.numbers(RstStreamFrame) >= asked, WRITE * 2 + SLACK, "they are reset"
            )
            assert time.monotonic() - began > WRITE * 0.5
            assert peer.numbers(RstStreamFrame) == asked
            peer.send(PingFrame(0, opaque_data=b"12345678").serialize())
            wait_until(lambda: peer.heard() or any(isinstance(found, PingFrame) for found in peer.frames), 10)
            assert not peer.closed, "the connection may go on"


def test_without_it_they_stay() -> None:
    with relay_of("write limit", limits={"write_timeout": f"{WRITE}s"}) as site, Peer(site.relay.url) as peer:
        unread(site, peer)
        peer.hear(WRITE * 2.5)
        assert not peer.numbers(RstStreamFrame)


def connections(relay: RelayProcess) -> int:
    """Those that the relay holds at its port, of which the kernel has not been told to let go."""
    port = int(relay.url.rpartition(":")[2])
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(int(line[1].rpartition(":")[2], 16) == port and line[3] == "01" and line[9] != "0" for line in lines)


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_peer_that_reads_nothing_at_all_is_cut(version: str) -> None:
    with relay_of(limits={"write_timeout": f"{WRITE}s"}) as site, ExitStack() as stack:
        deaf = [stack.enter_context(Peer(site.relay.url, MIB, buffer=4096)) for _ in range(4)] if version == "2" else []
        for peer in deaf:
            peer.ask("/v1/files/f/content", count=20)
        if version == "1.1":
            parts = urlsplit(site.relay.url)
            for _ in range(4):
                deaf_socket = stack.enter_context(socket.socket())
                deaf_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                deaf_socket.connect((parts.hostname, parts.port))
                deaf_socket.sendall(b"GET /v1/files/f/content HTTP/1.1\r\nhost: x\r\n\r\n" * 20)
        wait_until(lambda: connections(site.relay) >= 4, 5, "they are connected")
        wait_until(lambda: connections(site.relay) == 0, 2 * WRITE + SLACK, "they are cut")


# -- what they hold ---------------------------------------------------------------------------------------------------


@dataclass
class Stranger:
    """Reads a stream of twenty events a second while others attack."""

    answer: RawStream
    longest: float = 0.0

    def listen(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            assert self.answer.events(1), "the stranger's stream was cut"
            self.longest = max(self.longest, time.monotonic() - began)


def cpu(pid: int) -> float:
    """Seconds that a process has taken, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def flood(site: Site, path: str, enough: int | None = None) -> int:
    """By how much the relay grows while four peers ask for 980 answers each and read none of them: until it has
    nothing more to do for them, or has grown by `enough`."""
    with (
        open_stream(site.relay.url + PATH, headers=AUTH, body=CHAT) as answer,
        ExitStack() as stack,
    ):
        stranger = Stranger(answer)
        stranger.listen(1)
        before = rss(site.relay.pid)
        for _ in range(4):
            stack.enter_context(Peer(site.relay.url)).ask(path, count=980)
        give_up = time.monotonic() + 40
        most = idle = 0
        while idle < 5 and time.monotonic() < give_up and (enough is None or most <= enough):
            used = cpu(site.relay.pid)
            stranger.listen(0.4)
            # Twenty events a second for a stranger take a fortieth of a core, answers all of it.
            idle = idle + 1 if cpu(site.relay.pid) - used < 0.06 else 0
            most = max(most, rss(site.relay.pid) - before)
        assert stranger.longest < 10, "the loop was blocked"
        return most


@pytest.mark.parametrize("path", ["/v1/files/f/content", "/openapi.json", "/streams/{stream}"])
def test_unread_answers_hold_a_bounded_memory(path: str) -> None:
    """128 MiB for their bytes, and what as many requests cost besides."""
    with relay_of(**NEVER) as site:
        assert flood(site, path.format(stream=finished(site))) < 300 * MIB


def test_without_bounds_they_hold_more() -> None:
    with relay_of("bounds", **NEVER) as site:
        assert flood(site, "/v1/files/f/content", 330 * MIB) > 330 * MIB


def test_an_upstream_waits_for_a_client_that_takes_nothing() -> None:
    """What is passed through is not read faster than its client takes it."""
    with relay_of(**NEVER) as site:
        site.upstream.on_path(
            "GET /v1/files/large/content",
            Head(200, {"content-type": "application/octet-stream"}, "length"),
            *(Send(b"z" * MIB) for _ in range(64)),
            End(),
        )
        before = rss(site.relay.pid)
        with Peer(site.relay.url) as peer:
            peer.ask("/v1/files/large/content", count=4)
            wait_until(lambda: peer.heard() or len(peer.numbers(HeadersFrame)) == 4, 20)
            peer.hear(3)
            assert rss(site.relay.pid) - before < 24 * MIB
            calls = [call for call in site.upstream.calls if call.path == "/v1/files/large/content"]
            assert not any(call.ended.is_set() for call in calls), "it has been read to its end"


# -- frames that bring nothing ----------------------------------------------------------------------------------------

BARREN = {
    "PING": PingFrame(0, opaque_data=b"12345678").serialize(),
    "acknowledged PING": PingFrame(0, opaque_data=b"12345678", flags=["ACK"]).serialize(),
    "SETTINGS": SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize(),
    "empty SETTINGS": SettingsFrame(0).serialize(),
    "PRIORITY": PriorityFrame(101, depends_on=0, stream_weight=16).serialize(),
    "WINDOW_UPDATE of the connection": WindowUpdateFrame(0, window_increment=1).serialize(),
    "WINDOW_UPDATE of a stream": WindowUpdateFrame(1, window_increment=1).serialize(),
    "empty DATA": DataFrame(1, data=b"").serialize(),
    "DATA of one byte": DataFrame(1, data=b" ").serialize(),
    "DATA of padding": DataFrame(1, data=b"", pad_length=200, flags=["PADDED"]).serialize(),
    "an unknown type": b"\x00\x00\x01\xbb\x00\x00\x00\x00\x00x",
}


def barren(site: Site, kind: str, count: int) -> Peer:
    with Peer(site.relay.url, 65535, 65535 * 2) as peer:
        head = hpack.Encoder().encode(request(b"POST", b"/v1/files"))
        peer.send(HeadersFrame(1, data=head, flags=["END_HEADERS"]).serialize())
        burst = BARREN[kind] * 500
        for _ in range(count // 500):
            peer.send(burst)
            peer.hear(0.01)
            if peer.closed:
                break
        peer.send(PingFrame(0, opaque_data=b"the last").serialize())
        answered = PingFrame(0, opaque_data=b"the last", flags=["ACK"]).serialize()
        wait_until(
            lambda: peer.heard() or peer.closed or any(found.serialize() == answered for found in peer.frames[-9:]),
            30,
            "an end, or an answer to what was sent last",
        )
        return peer


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with relay_of() as found:
        yield found


@pytest.fixture(scope="module")
def unrated() -> Iterator[Site]:
    with relay_of("rates") as found:
        yield found


@pytest.mark.parametrize("kind", BARREN)
def test_a_flood_of_frames_that_bring_nothing_ends_the_connection(site: Site, kind: str) -> None:
    peer = barren(site, kind, 30_000)
    assert peer.closed
    assert peer.goodbye in (CALM, None), "it was ended for something else"  # what it still sends may cost it the word


@pytest.mark.parametrize("kind", ["PING", "empty DATA", "an unknown type", "SETTINGS"])
def test_without_rates_it_goes_on(unrated: Site, kind: str) -> None:
    peer = barren(unrated, kind, 10_000)
    assert (peer.closed, peer.goodbye) == (False, None)


def test_acknowledgements_that_nobody_reads_do_not_pile_up() -> None:
    """Not even without rates: who takes none of them is not read on."""
    with relay_of("rates", limits={"write_timeout": f"{WRITE}s"}) as site:
        before = rss(site.relay.pid)
        with Peer(site.relay.url, buffer=4096) as peer:
            peer._socket.settimeout(1)
            burst = PingFrame(0, opaque_data=b"12345678").serialize() * 4000
            sent = 0
            while not peer.closed and sent < 256 * MIB:
                peer.send(burst)
                sent += len(burst)
            assert sent < 64 * MIB, "they are taken without end"
            assert rss(site.relay.pid) - before < 16 * MIB
            wait_until(lambda: connections(site.relay) == 0, 2 * WRITE + SLACK, "it is cut")


def test_a_client_that_reads_may_measure_its_line(site: Site) -> None:
    """gRPC sends a PING for each piece of an answer, and careful clients two WINDOW_UPDATE: 11,000 frames in all."""
    with Peer(site.relay.url, 65535, 65535 * 2) as peer:
        taken = 0
        seen = 0
        asked = peer.ask("/v1/files/f/content", count=60)
        give_up = time.monotonic() + 90
        while len(peer.numbers(RstStreamFrame)) + taken < len(asked) and time.monotonic() < give_up:
            peer.hear(0.01)
            answer = b""
            for found in peer.frames[seen:]:
                if not isinstance(found, DataFrame):
                    continue
                taken += "END_STREAM" in found.flags
                answer += PingFrame(0, opaque_data=b"12345678").serialize()
                if size := found.flow_controlled_length:
                    answer += WindowUpdateFrame(0, window_increment=size).serialize()
                    answer += WindowUpdateFrame(found.stream_id, window_increment=size).serialize()
            seen = len(peer.frames)
            peer.send(answer)
        assert (taken, peer.goodbye, peer.closed) == (60, None, False)


NODE = """
const http2 = require("http2"), [url, count] = process.argv.slice(1), connection = http2.connect(url);
const pings = setInterval(() => connection.ping(() => {}), 200), ends = {};
let left = Number(count);
connection.on("goaway", (code) => console.log("goaway", code));
const over = (how) => {
  ends[how] = (ends[how] || 0) + 1;
  if (--left === 0) { console.log(JSON.stringify(ends)); clearInterval(pings); connection.close(); }
};
connection.once("remoteSettings", () => {
  for (let n = 0; n < Number(count); n++) {
    const head = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"};
    const asked = connection.request({...head, "authorization": `Bearer sk-${n}`});
    let heard = "", error = "cut";
    asked.setEncoding("utf8").on("data", (text) => { heard += text; }).on("error", (e) => { error = e.code; });
    asked.on("close", () => over(heard.includes("[DONE]") ? "whole" : error));
    asked.end(JSON.stringify({model: "paced", stream: true, messages: []}));
  }
});
"""


def test_many_streams_of_a_usual_client_are_well(site: Site) -> None:
    """Node.js: 500 at once on one connection, twenty events a second each, and a PING five times a second."""
    needs(shutil.which("node"), "Node.js")
    site.upstream.on("paced", *stream(*(step for n in range(60) for step in (frame(n), Pause(0.05))), DONE))
    command = ["node", "-e", NODE, site.relay.url, "500"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert told.stdout == '{"whole":500}\n'


# -- heads that have no end -------------------------------------------------------------------------------------------

LINE = b"x-a: " + b"y" * 993 + b"\r\n"


def half_heads() -> dict[str, bytes]:
    encoder = hpack.Encoder()
    first = HeadersFrame(1, data=encoder.encode(request()), flags=["END_STREAM"]).serialize()
    opened = PREFACE + SettingsFrame(0).serialize()
    piece = ContinuationFrame(1, data=b"\x00\x03x-a\x7f\x81\x7e" + b"y" * 16000).serialize()
    return {
        "HTTP/1.1": b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + LINE * 62,
        "CONTINUATION": opened + first + piece * 60,
        "a frame that is too long": opened + (16 * MIB - 1).to_bytes(3) + b"\x01\x00\x00\x00\x00\x01" + b"y" * MIB,
    }


def grows_by(site: Site, data: bytes, count: int) -> int:
    """Until it has nothing more to do."""
    before = rss(site.relay.pid)
    parts = urlsplit(site.relay.url)
    with ExitStack() as stack:
        for _ in range(count):
            half = stack.enter_context(socket.create_connection((parts.hostname, parts.port), 20))
            try:
                half.sendall(data)
            except ConnectionError:
                pass  # refused already
        give_up = time.monotonic() + 20
        most = idle = 0
        while idle < 5 and time.monotonic() < give_up:
            used = cpu(site.relay.pid)
            time.sleep(0.2)
            idle = idle + 1 if cpu(site.relay.pid) - used < 0.02 else 0
            most = max(most, rss(site.relay.pid) - before)
        return most


@pytest.mark.parametrize("kind", half_heads())
def test_500_half_heads_hold_64_kib_each(kind: str) -> None:
    """And a connection costs some more."""
    with relay_of() as site:
        assert grows_by(site, half_heads()[kind], 500) < 500 * (64 + 48) << 10


@pytest.mark.parametrize("kind", ["CONTINUATION", "a frame that is too long"])
def test_without_a_bound_they_hold_more(kind: str) -> None:
    with relay_of("heads") as site:
        assert grows_by(site, half_heads()[kind], 100) > 100 * (256 + 48) << 10
