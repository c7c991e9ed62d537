"""The HTTP server: connections on the relay's own listener, from the first one to the last one's end.

Between "take no more" and "nobody is left" there are moments that a drain needs: what is on its way is served, and who
runs a request goes on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.types import ASGIApp

from relay.config import LimitSettings
from relay.http.accepting import Accepting
from relay.http.connection import Connection
from relay.http.context import Context
from relay.http.http2 import Http2
from relay.http.sharing import ALONE, Share

# One of 100 drops SYNs under a burst, which come back after a second and more.
_BACKLOG = 4096
_GRACE = 3.0
_SETTLE = 0.25
Until = Callable[["Server"], Awaitable[None]]
# For what a client had sent, or was about to, when the drain began: more than any network takes, on a busy machine.
_CROSSING = 1.0


class Server:
    """Connections on `listener`, which it closes."""

    def __init__(self, app: ASGIApp, listener: socket.socket, limits: LimitSettings, share: Share = ALONE) -> None:
        self._listener, self._share = listener, share
        self._context = Context(app, limits, share)
        self._accepting: Accepting | None = None
        self._going_away: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> set[Connection]:
        return self._context.connections

    async def start(self) -> None:
        self._accepting = Accepting(self._listener, _BACKLOG, lambda: Connection(self._context), self._share)

    async def drain(self, *, listening: bool) -> None:
        """Have every connection end as soon as no request runs on it, and return when what was on its way is here.

        New connections are refused from now on. With `listening` they are taken, for one request each. A connection
        ends with its next answer, over HTTP/2 with all that run on it (RFC 9113, section 6.8), and at once where it has
        been idle for a moment.
        """
        if not listening:
            await self._stop_accepting()
        await self._send_away()
        await self._ended(_CROSSING)
        await self._settle()

    async def answered(self) -> None:
        """In a drain: return when no request is under way any more."""
        while any(connection.begun for connection in self.connections):
            await self._context.next_end()

    async def close(self) -> None:
        """No more connections, a moment for the requests of those just accepted, and one for all answers to end."""
        await self._stop_accepting()
        await self._send_away()
        await self._ended(_SETTLE)
        await self._context.terminated.set()
        await self._settle()
        await self._ended(_GRACE)
        left = [*self._context.tasks, *self._going_away]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for end in (Connection.close, Connection.abort):
            for connection in self.connections:
                end(connection)
            await self._ended(_SETTLE)

    async def _stop_accepting(self) -> None:
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            await accepting.stop()

    async def _send_away(self) -> None:
        if self._context.draining:
            return
        self._context.draining = True
        for connection in self.connections:
            if isinstance(connection.protocol, Http2):
                task = asyncio.create_task(connection.protocol.go_away(_CROSSING))
                self._going_away.add(task)
                task.add_done_callback(self._going_away.discard)

    async def _settle(self) -> None:
        self._context.settled = True
        for connection in list(self.connections):
            connection.end_if_idle()

    async def _ended(self, timeout: float) -> None:
        """Returns when no connection is left, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.connections:
                    await self._context.next_end()


async def serve(
    app: ASGIApp, listener: socket.socket, until: Until, limits: LimitSettings, share: Share = ALONE
) -> None:
    """Serve until `until` returns; then open connections have a moment to end."""
    server = Server(app, listener, limits, share)
    await server.start()
    try:
        await until(server)
    finally:
        await server.close()
