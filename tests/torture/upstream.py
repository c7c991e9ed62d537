"""The upstream of every replica: plays generations over HTTP/1.1, and knows of every call what became of it.

Each replica has an address of its own here, so a call tells whose it is. A request says what its answer is to be
(`torture` in its body) and which attempt of which client it is; nothing else decides what is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections import defaultdict
from dataclasses import dataclass, field

from tests.support.processes import free_port
from tests.torture.generation import Generation, Spec, spec_of
from tests.torture.timeline import Timeline

_FOREVER = 3600.0


@dataclass
class Call:
    """One POST that came here."""

    number: int
    replica: int
    attempt: str
    """Which request of which client it is."""
    key: str | None
    """Its request's Idempotency-Key, as the client's body repeats it."""
    spec: Spec
    began: float
    sent: int = 0
    """How many events have been sent."""
    sent_at: float = 0.0
    said_all: float | None = None
    """When its last event was sent: what follows is the end of the body alone."""
    ended: float | None = None
    cancelled: bool = False
    """The replica hung up before the answer was whole."""
    writer: asyncio.StreamWriter | None = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        return self.ended is not None

    def __str__(self) -> str:
        what = f"call {self.number} of {self.attempt} by replica {self.replica} at {self.began:.2f}: {self.sent} events"
        if self.ended is None:
            return f"{what}, still open"
        return f"{what}, {'cancelled' if self.cancelled else 'over'} at {self.ended:.2f}"


class Upstream:
    """Addresses for so many replicas. Use it as an asynchronous context manager."""

    def __init__(self, replicas: int, timeline: Timeline) -> None:
        self.ports = [free_port() for _ in range(replicas)]
        self.calls: list[Call] = []
        self.by_attempt: dict[str, list[Call]] = defaultdict(list)
        self.by_key: dict[str, list[Call]] = defaultdict(list)
        self._now = timeline.clock
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, replica: int) -> str:
        return f"http://127.0.0.1:{self.ports[replica]}"

    def call(self, number: int) -> Call:
        return self.calls[number - 1]

    @property
    def open_calls(self) -> list[Call]:
        return [call for call in self.calls if not call.over]

    async def __aenter__(self) -> Upstream:
        for replica, port in enumerate(self.ports):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replica: int = replica) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._tasks.add(task)
                try:
                    await self._serve(replica, reader, writer)
                finally:
                    self._tasks.discard(task)

            self._servers.append(await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024, limit=1 << 20))
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, replica: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while (body := await _request(reader)) is not None:
                whole = await self._answer(replica, body, reader, writer)
                if not whole:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(
        self, replica: int, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Play one generation. False where the connection is over with it."""
        try:
            request = json.loads(body)
            spec = spec_of(request)
        except (ValueError, KeyError, TypeError):
            writer.write(b"HTTP/1.1 404 Scripted\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}")
            return True
        number = len(self.calls) + 1
        call = Call(number, replica, request["attempt"], request.get("key"), spec, self._now(), writer=writer)
        self.calls.append(call)
        self.by_attempt[call.attempt].append(call)
        if call.key is not None:
            self.by_key[call.key].append(call)
        playing = asyncio.ensure_future(_play(call, writer, self._now))
        # Clients do not pipeline: what can be read now is the end of the connection.
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((playing, gone), return_when=asyncio.FIRST_COMPLETED)
            if playing.done() and not playing.cancelled():
                call.cancelled = playing.exception() is not None
                return not call.cancelled and playing.result()
            call.cancelled = True
            return False
        finally:
            call.ended = self._now()
            call.writer = None
            for task in (playing, gone):
                task.cancel()
            await asyncio.gather(playing, gone, return_exceptions=True)


async def _play(call: Call, writer: asyncio.StreamWriter, now: object) -> bool:
    assert callable(now)
    spec = call.spec
    await asyncio.sleep(spec.head_after)
    if spec.ending == "refused":
        error = {"message": "Too many requests.", "type": "rate_limit_error", "param": None, "code": "rate_limited"}
        body = json.dumps({"type": "error", "error": error}).encode()
        writer.write(
            b"HTTP/1.1 429 Scripted\r\ncontent-type: application/json\r\nretry-after: 7\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        return True
    writer.write(
        b"HTTP/1.1 200 Scripted\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
        b"x-request-id: up-%d\r\n\r\n" % call.number
    )
    generation = Generation(spec, call.number)
    n = 0
    while n < generation.total:
        upto = min(n + spec.burst, generation.total)
        if n < spec.silent_at <= upto:
            await asyncio.sleep(_FOREVER if spec.ending == "silent" else spec.silent_for)
        data = b"".join(generation.frame(i).encode() for i in range(n + 1, upto + 1))
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()
        n = call.sent = upto
        call.sent_at = now()
        if n == generation.total and generation.end is not None:
            call.said_all = call.sent_at
        await asyncio.sleep(spec.pace)
    if spec.ending in ("cut", "reset"):
        if spec.ending == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return False
    if spec.ending == "silent":
        await asyncio.sleep(_FOREVER)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


async def _request(reader: asyncio.StreamReader) -> bytes | None:
    """The body of the next request, None where the peer has closed the connection between two."""
    head = b""
    with contextlib.suppress(asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
    if not head:
        return None
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return await reader.readexactly(int(lengths[0].partition(b":")[2]) if lengths else 0)
