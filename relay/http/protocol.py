"""A connection: HTTP/1.1, until its first bytes are HTTP/2's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H2ProtocolAssumedError

from relay.http.http1 import Context, Http1
from relay.http.http2 import Http2
from relay.http.unsent import Waiting

# For a request that was on its way to a connection which has begun in a drain.
_CROSSING = 1.0

_P = TypeVar("_P")


class Protocol(ProtocolWrapper):
    """A connection that begins as HTTP/1.1 and is HTTP/2 once its client says so."""

    context: Context
    protocol: Http1 | Http2

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.protocol = self._made(Http1)

    @property
    def begun(self) -> bool:
        """Has the client sent the head of a request yet?"""
        return bool(self.protocol.keep_alive_requests)

    def waiting(self) -> Iterator[Waiting]:
        """The answers that cannot go on before their client takes something."""
        return self.protocol.waiting()

    async def until_to_be_closed(self) -> None:
        """Return when this connection, which is idle, is to be closed for the server's end."""
        await self.protocol.until_to_be_closed()

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
            self.protocol = self._made(Http2)
            await self.protocol.initiate()
            await self.send(Updated(idle=True))
            if self.context.draining.is_set():
                self.task_group.spawn(self.protocol.go_away, _CROSSING)
            if known.data:
                await self.protocol.handle(RawData(known.data))

    def _made(self, kind: Callable[..., _P]) -> _P:
        return kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.state,
            self.ssl,
            self.client,
            self.server,
            self.send,
        )
