"""What all connections of one server have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.worker_context import WorkerContext
from starlette.types import ASGIApp

from relay.config import LimitSettings
from relay.http.beginnings import Beginnings
from relay.http.configuration import configuration
from relay.http.sharing import Share
from relay.http.unsent import BOUND, Account, Waiting

if TYPE_CHECKING:
    from relay.http.connection import Connection

# Requests of connections over HTTP/1.1 that are read in one turn of the loop.
_AT_ONCE = 4


class Context(WorkerContext):
    """`draining` is the beginning of the server's end; when it has `settled` no request is on its way any more;
    `terminated` is for what is left."""

    def __init__(self, app: ASGIApp, limits: LimitSettings, share: Share) -> None:
        super().__init__(None)
        self.app = app
        self.wrapped: Any = ASGIWrapper(app)  # type: ignore[arg-type]
        """As Hypercorn calls it."""
        self.limits = limits
        self.config = configuration()
        self.loop = asyncio.get_running_loop()
        self.draining = self.settled = False
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        """One for each request over HTTP/1.1 and one for each connection over HTTP/2."""
        self.unsent = Account(BOUND, self._waiting)
        self.beginnings = Beginnings(_AT_ONCE, between=0)
        self._share = share
        self._ended = asyncio.Event()

    def over(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._share.holds(len(self.connections))
        self._ended.set()

    async def next_end(self) -> None:
        """Returns when one more connection is over."""
        self._ended.clear()
        await self._ended.wait()

    def _waiting(self) -> list[Waiting]:
        """All answers that wait for their client, those of connections first that hold more than their share."""
        found = [
            (not connection.is_over_share, answer.kept_pace, answer)
            for connection in self.connections
            for answer in connection.protocol.waiting()
        ]
        return [answer for *_, answer in sorted(found, key=lambda entry: entry[:2])]
