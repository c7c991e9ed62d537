"""The paced upstream: an OpenAI-compatible server that generates exactly what a request orders.

    python -m relay.bench.upstream [--bind 127.0.0.1:9700]

Promises: each event is one write and one chunk, stamped with its send time immediately before; it is due at the
stream's start + n / rate, whatever happened to the events before it; a reader that takes nothing is waited
for; every stream has its number of events and a terminal event. `GET /bench/stats` counts the generations
that were ordered, `POST /bench/release` sends the rest of those that hold after their first event, `POST /bench/close`
closes the connections that have none, so that who comes next has to open one, and `POST /bench/sums` tells the CRC-32
of each stream that has ended since it was last asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
import zlib
from typing import cast

import uvloop

from relay.bench.wire import APIS, STAMP_BYTES, STAMP_TEXT, Api, Order, order_in

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_BATCH = 64
"""Events per write where none is paced: one stamp and one system call for all of them."""
_BACKLOG = 4096
_NO_ORDER = (
    "This is the paced upstream of `relay bench`: a request must carry the order that the load generator writes. "
    "Run `relay bench --target URL`."
)


class _Server:
    """What the connections share."""

    def __init__(self) -> None:
        self.generations = 0
        self.open: set[_Connection] = set()
        self.live: set[_Connection] = set()
        """Those that have a stream."""
        self.sums: dict[int, int] = {}
        """Of the streams that have ended."""

    def stats(self) -> dict[str, int]:
        return {"generations": self.generations, "live": len(self.live), "pid": os.getpid()}

    def release(self) -> int:
        held = [connection for connection in self.live if connection.held]
        for connection in held:
            connection.release()
        return len(held)

    def close(self, asking: _Connection) -> int:
        idle = self.open - self.live - {asking}
        for connection in idle:
            connection.close()
        return len(idle)


class _Connection(asyncio.Protocol):
    """One connection of a gateway, kept alive between requests."""

    def __init__(self, server: _Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._wanted = 0
        """Bytes that the next request has at least."""
        self._sum = 0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._waiting = False
        self.held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclass of it
        self._server.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)
        self._server.live.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= self._wanted and self not in self._server.live and self._request():
            pass

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._waiting:
            self._waiting = False
            self._next()

    def _request(self) -> bool:
        """Answer the next request if it is whole."""
        received = self._received
        begin = received.find(b"\r\n\r\n") + 4
        if begin < 4:
            return False
        line, *fields = bytes(received[: begin - 4]).split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(b":") for f in fields)}
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            over = received.find(b"0\r\n\r\n", begin)
            end = over + 5
            if over < 0:
                return False
        else:
            over = end = begin + int(headers.get(b"content-length", b"0"))
            if len(received) < end:
                self._wanted = end  # so that a long body is not looked through with each of its parts
                return False
        order = order_in(received, begin, over)  # where it is: a copy of 31 MB would hold up what is due meanwhile
        del received[:end]
        self._wanted = 0
        method, target, _ = line.split(b" ", 2)
        self._answer(method.decode(), target.decode("latin-1").partition("?")[0], order if method == b"POST" else None)
        return True

    def _answer(self, method: str, path: str, order: Order | None) -> None:
        api = next((api for api in APIS.values() if path.endswith(api.path.removeprefix("/v1"))), None)
        if api is not None and order is not None:
            self._server.generations += 1
            self._begin(api, order)
        elif path == "/bench/stats":
            self._json(200, self._server.stats())
        elif path == "/bench/release":
            self._json(200, {"released": self._server.release()})
        elif path == "/bench/close":
            self._json(200, {"closed": self._server.close(self)})
        elif path == "/bench/sums":
            sums, self._server.sums = self._server.sums, {}
            self._json(200, sums)
        elif path.endswith("/models"):
            self._json(200, {"object": "list", "data": [{"id": "bench", "object": "model", "owned_by": "bench"}]})
        else:
            self._json(400, {"error": {"message": _NO_ORDER, "type": "invalid_request_error", "code": "no_order"}})

    def close(self) -> None:
        """What was written is sent before."""
        if self._transport is not None:
            self._transport.close()

    def _json(self, status: int, fields: object) -> None:
        body = json.dumps(fields).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._write(head.encode() + body)

    def _begin(self, api: Api, order: Order) -> None:
        self._server.live.add(self)
        self._event, self._order, self._api = api.event, order, api
        self._padding = b"." * (order.payload - STAMP_BYTES)
        self._number = 0
        self._started = self._loop.time()
        self.held = order.rate < 0
        self._batch = 1 if order.rate else _BATCH
        self._sum = 0
        self._write(_HEAD + b"".join(self._chunk(frame) for frame in api.opening) + self._stamped(1))
        if order.length == 1:
            self._end()
        elif not self.held:
            self._schedule()

    def _stamped(self, count: int) -> bytes:
        """The next events, as chunks."""
        stream, padding, event = self._order.stream, self._padding, self._event
        first = self._number + 1
        self._number += count
        now = time.monotonic_ns()
        if count == 1:
            return self._chunk(event(first, padding + STAMP_TEXT % (stream, first, now)))
        numbers = range(first, first + count)
        return b"".join([self._chunk(event(n, padding + STAMP_TEXT % (stream, n, now))) for n in numbers])

    def _schedule(self) -> None:
        if self._order.rate:
            self._timer = self._loop.call_at(self._started + self._number / self._order.rate, self._next)
        else:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._transport is None:
            return
        if self._paused:
            self._waiting = True
            return
        self._write(self._stamped(min(self._batch, self._order.length - self._number)))
        if self._number == self._order.length:
            self._end()
        else:
            self._schedule()

    def release(self) -> None:
        """Send what is left at once."""
        self.held = False
        self._batch = _BATCH
        self._order = Order(self._order.stream, self._order.length, 0.0, self._order.payload)
        self._schedule()

    def _end(self) -> None:
        self._write(b"".join(self._chunk(frame) for frame in self._api.closing(self._number)) + b"0\r\n\r\n")
        self._server.sums[self._order.stream] = self._sum
        self._server.live.discard(self)
        self._loop.call_soon(self.data_received, b"")  # a request that came meanwhile

    def _chunk(self, frame: bytes) -> bytes:
        self._sum = zlib.crc32(frame, self._sum)
        return b"%x\r\n%b\r\n" % (len(frame), frame)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def _serve(host: str, port: int, until_eof: bool) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    if until_eof:
        loop.add_reader(sys.stdin, ending.set)
    shared = _Server()
    server = await loop.create_server(lambda: _Connection(shared, loop), host, port, backlog=_BACKLOG)
    bound: socket.socket = server.sockets[0]
    name, number = bound.getsockname()[:2]
    print(f"http://{f'[{name}]' if ':' in name else name}:{number}", flush=True)
    await ending.wait()
    server.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The paced upstream of `relay bench`.")
    parser.add_argument("--bind", default="127.0.0.1:9700", metavar="HOST:PORT")
    parser.add_argument("--until-eof", action="store_true", help="end with standard input, so with the parent")
    arguments = parser.parse_args(argv)
    host, _, port = arguments.bind.rpartition(":")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(host.strip("[]"), int(port), arguments.until_eof))
    except OSError as error:
        print(f"relay bench: the paced upstream cannot listen on {host}:{port} ({error}). Try another --upstream-bind.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
