"""Delivery: a reader's events to its client, heartbeats in between, and an end that cannot be mistaken.

One timer per reader, armed again only when it fires, serves the heartbeat; an event sets none. Nothing stands between
the frames and the server's own `send`, or the connection itself where the server lets the relay write to it
(`exchange.direct`). The server also sees to clients that take nothing (`relay/http/unsent.py`): they are gone then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from relay import timers
from relay.api import told
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.config import Settings
from relay.http.contract import ConnectionCut
from relay.metrics import Meter
from relay.protocol import agents
from relay.protocol.errors import StoreUnavailable
from relay.protocol.headers import INCREMENTAL, Headers
from relay.streams.adoption import Adoption
from relay.streams.reader import Lost, Reader

# The most that is written through. The server takes what is larger slice by slice, so that it is copied nowhere.
_SLICE = 64 * 1024
# A client's machine that is asked for a sign of life answers within so many seconds; who comes again waits a second.
_HEARD_WITHIN = 0.6
# After an answer's end, pauses in which a client's machine is to say that it has all of it: 0.7 s.
_TAKEN_WITHIN = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3)

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


async def deliver(
    services: Services, exchange: Exchange, source: Events, headers: Headers, stream: str, *, joinable: bool
) -> None:
    """One client reading one stream, and what became of it: the next request that is the same may join what this one
    has not had to its end. Raises ConnectionCut."""
    adoption = services.registry.adoption
    delivered = False
    why = "left"
    delivery = Delivery(exchange, source, services.settings)
    adoption.connected(stream, delivery.probe)
    try:
        await delivery.run(headers)
        delivered = True
        why = "finished"
    except ConnectionCut:
        why = delivery.why(draining=services.registry.lookup.draining)
        raise
    finally:
        told.reader_gone(services, exchange, stream, source.cursor, why)
        adoption.disconnected(stream, delivery.probe)
        if not delivered or not adoption.follows(stream, joinable=joinable):
            adoption.left(stream, delivered=delivered, joinable=joinable)
        else:
            services.registry.later(_see_taken(adoption, exchange.taken(), stream, joinable))


async def _see_taken(adoption: Adoption, taken: Callable[[], bool | None], stream: str, joinable: bool) -> None:
    """What was written may never arrive: the client's machine tells, mostly at once."""
    for pause in (*_TAKEN_WITHIN, 0.0):
        if (delivered := taken()) is not None:
            break
        await asyncio.sleep(pause)
    adoption.left(stream, delivered=bool(delivered), joinable=joinable)


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


class Events(Source, Protocol):
    """Those of a stream; `cursor` is the last one that was given out."""

    @property
    def cursor(self) -> int: ...


def suit(reader: Reader, exchange: Exchange, settings: Settings) -> Reader:
    """The reader as its client understands it. Who comes back with an id, or to a stream's own address, is told how it
    ended: a cut says that only to who asks again."""
    streams, headers = settings.streams, exchange.headers
    reader.heartbeat = agents.heartbeat(streams.heartbeat_form, reader.dialect, headers, reader.comment)
    comes_back = exchange.method != "POST" or b"last-event-id" in exchange.named
    if not comes_back:
        reader.cut_at_loss = agents.hears_losses_as_cuts(streams.broken_end, reader.dialect, headers)
    return reader


class Delivery:
    """One client reading one stream."""

    def __init__(self, exchange: Exchange, reader: Source, settings: Settings) -> None:
        self._exchange = exchange
        self._reader = reader
        self._every = settings.streams.heartbeat
        self._slow = 0.5 * settings.limits.write_timeout
        self._unheard = False
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()
        self._writing = 0.0  # since when
        self._held_back: bytes | None = None  # what is too large for one write
        self._beat = False
        self._timer: timers.Timer | None = None

    async def run(self, headers: Headers) -> None:
        """Returns at the stream's end. Raises ConnectionCut where this connection must not look complete."""
        try:
            self._exchange.presence.when_gone(self._reader.hang_up)
            await self._exchange.start(200, headers)
            self._exchange.when_half_closed(self._send_heartbeat)
            self._timer = timers.call_later(self._every, self._tick)
            await self._pump()
        except (Lost, StoreUnavailable):
            raise ConnectionCut from None
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._exchange.presence.when_gone(None)
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
            self._writing = now()
            await send(data)
            data = None  # a reader that waits holds nothing
            self._writing = 0.0
            self._last_write = now()

    def why(self, *, draining: bool) -> str:
        """Why a connection was cut."""
        if self._unheard:
            return "unheard"
        if self._exchange.given_up or (self._writing and self._loop.time() - self._writing >= self._slow):
            return "too_slow"
        if self._exchange.gone:
            return "left"
        return "drain" if draining else "lost"

    def probe(self) -> None:
        """Somebody asks for the same again: is this client still there? One that is cut off without a word, as by a
        change of networks, answers nothing, and would be written to for minutes."""
        self._send_heartbeat()
        self._loop.call_later(_HEARD_WITHIN, self._hang_up_unheard)

    def _hang_up_unheard(self) -> None:
        if self._timer is not None and self._exchange.unheard() > _HEARD_WITHIN - 0.05:
            self._unheard = True
            self._exchange.abort()
            self._reader.hang_up()

    def _send_heartbeat(self) -> None:
        self._beat = True
        self._reader.nudge()

    def _tick(self) -> None:
        now = self._loop.time()
        due = now if self._writing else self._last_write
        if now >= due + self._every:
            self._send_heartbeat()
            due = now
        self._timer = timers.call_at(max(due + self._every, now + 0.01), self._tick)
