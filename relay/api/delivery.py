"""Delivery: a reader's events to its client, heartbeats in between, and an end that cannot be mistaken.

One timer per reader, armed again only when it fires, serves both the heartbeat and the write limit; an
event sets none. Nothing stands between the frames and the server's own `send`, or the connection itself where the
server lets the relay write to it (`exchange.direct`).

Promises: a client that takes something, if only a little, within `limits.write_timeout` is never dropped, whatever the
size of an event; one that takes nothing holds a slice of what it was given, in its connection, and no copy of the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from relay.api.exchange import Exchange
from relay.config import Settings
from relay.http.contract import ConnectionCut
from relay.metrics import Meter
from relay.protocol import agents
from relay.protocol.errors import StoreUnavailable
from relay.protocol.headers import INCREMENTAL, Headers
from relay.streams.reader import Lost, Reader

# The most that one write hands to a connection.
_SLICE = 64 * 1024
# How often in `limits.write_timeout` a client that keeps a write waiting is looked at.
_LOOKS = 4

EVENT_STREAM: Headers = [
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    INCREMENTAL,
]
"""Of every event stream: what makes proxies hand it on as it comes, and keep none of it."""
NO_STORE = (b"cache-control", b"no-store")
"""Of answers that hold a ticket, or tell of a stream: a proxy must not give them to somebody else."""

_STREAM_HEADERS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), *EVENT_STREAM]


def stream_headers(
    stream: str,
    heartbeat: float,
    *,
    resumable: bool,
    upstream: Headers = (),  # type: ignore[assignment]
) -> Headers:
    """`heartbeat` is the longest silence of a connection that lives, in seconds."""
    return [
        *_STREAM_HEADERS,
        (b"relay-stream-id", stream.encode()),
        (b"relay-resumable", b"true" if resumable else b"false"),
        (b"relay-heartbeat", f"{heartbeat:g}".encode()),
        *upstream,
    ]


class Source(Protocol):
    """What is delivered: `Reader` says what each means."""

    meter: Meter
    write_through: Callable[[bytes], bool] | None

    @property
    def heartbeat(self) -> bytes: ...

    async def read(self) -> bytes | None: ...

    def nudge(self) -> None: ...

    def hang_up(self) -> None: ...

    def close(self) -> None: ...


def suit(reader: Reader, exchange: Exchange, settings: Settings) -> Reader:
    """The reader as its client understands it. Who comes back with an id, or to a stream's own address, is told how it
    ended: a cut says that only to who asks again."""
    streams, headers = settings.streams, exchange.headers
    reader.heartbeat = agents.heartbeat(streams.heartbeat_form, reader.dialect, headers, reader.comment)
    comes_back = exchange.method != "POST" or exchange.header(b"last-event-id") is not None
    if not comes_back:
        reader.cut_at_loss = agents.hears_losses_as_cuts(streams.broken_end, reader.dialect, headers)
    return reader


class Delivery:
    """One client reading one stream."""

    def __init__(self, exchange: Exchange, reader: Source, settings: Settings) -> None:
        self._exchange = exchange
        self._reader = reader
        self._every = settings.streams.heartbeat
        self._write_timeout = settings.limits.write_timeout
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()
        self._writing_since: float | None = None  # or since the client was last seen to take something
        self._untaken = exchange.untaken()
        self._seen_untaken = 0
        self._held_back: bytes | None = None  # what is too large for one write
        self._beat = False
        self._too_slow = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, headers: Headers) -> None:
        """Returns at the stream's end. Raises ConnectionCut where this connection must not look complete."""
        self._task = asyncio.current_task()
        gone = asyncio.create_task(self._watch())
        try:
            await self._exchange.start(200, headers)
            self._exchange.when_half_closed(self._send_heartbeat)
            self._timer = self._loop.call_later(min(self._every, self._write_timeout / _LOOKS), self._tick)
            await self._pump()
        except (Lost, StoreUnavailable):
            raise ConnectionCut from None
        except asyncio.CancelledError:
            if self._too_slow and self._task is not None:
                self._task.uncancel()
                raise ConnectionCut from None
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            gone.cancel()
            self._exchange.when_half_closed(None)
            self._reader.close()
        await self._exchange.end()

    async def _pump(self) -> None:
        reader = self._reader
        direct = self._exchange.direct()
        send = self._exchange.sender() if direct is None else direct.send
        now = self._loop.time
        if direct is not None:

            def write_through(data: bytes, write: Callable[[bytes], bool] = direct.write) -> bool:
                if len(data) > _SLICE:
                    self._held_back = data
                    return False
                self._last_write = now()
                return write(data)

            reader.write_through = write_through
        while True:
            data = await reader.read()
            if data is None:
                return
            if not data and self._held_back is not None:
                data, self._held_back = self._held_back, None
            elif not data and self._beat:
                data = reader.heartbeat
                self._beat = False
                reader.meter.heartbeats.inc()
            self._writing_since = now()
            if len(data) <= _SLICE:
                await send(data)
            else:
                await self._send_sliced(data, send)
            data = None  # a reader that waits holds nothing
            self._writing_since = None
            self._last_write = now()

    async def _send_sliced(self, data: bytes, send: Callable[[bytes | memoryview], Awaitable[None]]) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _SLICE):
            await send(view[at : at + _SLICE])
            self._writing_since = self._loop.time()

    async def _watch(self) -> None:
        await self._exchange.until_gone()
        self._reader.hang_up()

    def _send_heartbeat(self) -> None:
        self._beat = True
        self._reader.nudge()

    def _tick(self) -> None:
        now = self._loop.time()
        if self._writing_since is not None:
            untaken = self._untaken()
            if untaken != self._seen_untaken:
                self._seen_untaken = untaken
                self._writing_since = now
            due = self._writing_since + self._write_timeout
            if now >= due and self._task is not None:
                self._too_slow = True
                self._exchange.abort()
                self._task.cancel()
                return
        else:
            due = self._last_write + self._every
            if now >= due:
                self._send_heartbeat()
                due = now + self._every
        self._timer = self._loop.call_at(max(min(due, now + self._write_timeout / _LOOKS), now + 0.01), self._tick)
