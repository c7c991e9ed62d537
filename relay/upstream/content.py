"""An answer's body between its connection and who takes it.

Promises: all that has arrived is handed out, however its connection ended; who takes nothing of it makes its upstream
wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp

from relay.upstream.decoding import Sink, transport_error

# Of a body that its client does not take; twice as much is read before the upstream waits.
READ_AHEAD = 16 * 1024
# The upstream waits while a client takes a piece that is larger.
_LARGE = 4 * 1024


class Source(Protocol):
    """The connection that a body comes on, until it is over."""

    stopped: bool
    read_timeout: Any

    def push_to(self, sink: Sink) -> None: ...

    def hand_to(self, sink: Sink) -> None: ...

    def end(self, error: BaseException | None) -> None: ...

    def stop(self) -> None: ...

    def go_on(self) -> None: ...

    def start_timeout(self) -> None: ...

    def stop_timeout(self) -> None: ...


class Content:
    """An answer's body, once: kept until it is taken, then handed on. `bounded`: its head says where it ends, else its
    connection's end does (RFC 9112, section 6.3)."""

    __slots__ = ("_error", "_held", "_on_eof", "_owner", "_size", "_source", "_waiter", "bounded")

    def __init__(self, source: Source, bounded: bool) -> None:
        self.bounded = bounded
        self._source: Source | None = source  # None once it is over
        self._held: list[bytes] = []
        self._size = 0
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_eof: Callable[[], None] | None = None
        self._owner: Any = None

    @property
    def over(self) -> bool:
        return self._source is None

    @property
    def stopped(self) -> bool:
        """Is its upstream made to wait?"""
        return self._source is not None and self._source.stopped

    def exception(self) -> BaseException | None:
        return self._error

    def set_exception(self, error: BaseException, cause: BaseException | None = None) -> None:
        """Nobody wants more of it, which is an error to who takes it."""
        if self._source is not None:
            self._source.end(error)

    def on_eof(self, callback: Callable[[], None]) -> None:
        """Called once it is whole."""
        if self._source is None and self._error is None:
            callback()
        else:
            self._on_eof = callback

    def begin(self, owner: Any, idle: float) -> None:
        """`owner` has the connection; in `idle` seconds something has to come, whenever somebody waits for it."""
        if self._source is not None:
            self._owner = owner
            self._source.read_timeout = idle
        elif self._error is not None:
            owner.close()

    def close(self) -> None:
        """Ends the connection unless it was read to its end."""
        self.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        self._held.clear()  # else what nobody reads any more stays until the collector comes

    # -- handed on ------------------------------------------------------------------------------------------

    def push_to(self, sink: Sink) -> None:
        """From now on, and for what has arrived already, once. How long it may be silent is the sink's to watch."""
        early, source = self._taken(), self._source
        if source is not None:
            source.push_to(sink)
        if early:
            sink.data_received(early)
        if source is None:
            sink.eof_received(None if self._error is None else transport_error(self._error))

    def hand_to(self, sink: Sink) -> None:
        """Its sink has another take its place, which may have had it paused."""
        if self._source is not None:
            self._source.hand_to(sink)

    def pause(self) -> None:
        """Let the upstream wait. What was read may still arrive."""
        if self._source is not None:
            self._source.stop()

    def resume(self) -> None:
        if self._source is not None:
            self._source.go_on()

    # -- kept -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._waiter is not None:
            self._wake()
        if self._size > 2 * READ_AHEAD:
            self.pause()

    def eof_received(self, error: Any) -> None:
        if self._waiter is not None:
            self._wake()

    def end(self, error: BaseException | None) -> None:
        """Its connection has no more of it."""
        self._source = None
        self._error = error
        callback, self._on_eof = self._on_eof, None
        owner, self._owner = self._owner, None
        if error is not None:
            if owner is not None:
                owner.close()
        elif callback is not None:
            callback()

    async def pieces(self) -> AsyncIterator[bytes]:
        """As they arrive. All that has arrived is handed out before its connection's error is raised: a direct client
        would see it, however busy this process was as it broke."""
        while True:
            if piece := self._taken():
                self.pause() if len(piece) > _LARGE else self.resume()  # one read may bring 256 KiB
                yield piece
                piece = b""
                self.resume()
            elif self._source is not None:
                await self._more(self._source)
            elif self._error is not None:
                raise transport_error(self._error) from self._error
            else:
                return

    async def _more(self, source: Source) -> None:
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        source.start_timeout()
        try:
            await waiter
        finally:
            self._waiter = None
            if self._source is source:  # else the connection may be another answer's
                source.stop_timeout()

    def _taken(self) -> bytes:
        held, self._held, self._size = self._held, [], 0
        return held[0] if len(held) == 1 else b"".join(held)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
