"""A connection: HTTP/1.1, until its first bytes are HTTP/2's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.config import Config
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.typing import ConnectionState

from relay.http.http1 import Context, Http1
from relay.http.http2 import Http2
from relay.http.unsent import Waiting

# For a request that was on its way to a connection which has begun in a drain.
_CROSSING = 1.0


class Protocol:
    """A connection that begins as HTTP/1.1 and is HTTP/2 once its client says so."""

    def __init__(
        self,
        app: Any,
        config: Config,
        context: Context,
        task_group: TaskGroup,
        state: ConnectionState,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._context = context
        self._task_group = task_group
        self._send = send
        self._arguments = (app, config, context, task_group, state, False, client, server, send)
        self.protocol: Http1 | Http2 = Http1(*self._arguments)

    async def initiate(self) -> None:
        """Nothing is sent before a client has."""

    @property
    def begun(self) -> bool:
        """Has the client sent the head of a request yet?"""
        return bool(self.protocol.keep_alive_requests)

    def waiting(self) -> Iterator[Waiting]:
        """The answers that cannot go on before their client takes something."""
        return self.protocol.waiting()

    @property
    def is_to_be_closed(self) -> bool:
        """Is this connection, where it is idle, to be closed for the server's end?"""
        return self.protocol.is_to_be_closed

    @property
    def is_idle(self) -> bool:
        """Is what comes next, over HTTP/1.1, a request's beginning?"""
        return isinstance(self.protocol, Http1) and self.protocol.is_idle

    @property
    def owes_an_answer(self) -> bool:
        """Has a client of HTTP/1.1 sent a whole request whose answer is not at its end?"""
        return isinstance(self.protocol, Http1) and self.protocol.owes_an_answer

    async def probe(self) -> bool:
        """See `Http1.probe`."""
        return isinstance(self.protocol, Http1) and await self.protocol.probe()

    async def go_away(self, crossing: float) -> None:
        """Tell a client of HTTP/2 that its connection takes no request that is not here after `crossing` seconds."""
        if isinstance(self.protocol, Http2):
            await self.protocol.go_away(crossing)

    async def handle(self, event: Event) -> None:
        try:
            await self.protocol.handle(event)
        except H2ProtocolAssumedError as known:
            self.protocol = Http2(*self._arguments)
            await self.protocol.initiate()
            await self._send(Updated(idle=True))
            if self._context.draining.is_set():
                self._task_group.spawn(self.protocol.go_away, _CROSSING)
            if known.data:
                await self.protocol.handle(RawData(known.data))
