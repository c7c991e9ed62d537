"""A connection from HTTP/2's preface on: one task reads for it, in whose group those of its streams run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState

from relay.http.context import Context
from relay.http.contract import CONNECTION
from relay.http.http2 import Http2

if TYPE_CHECKING:
    from relay.http.connection import Connection

_MAX_READ = 64 * 1024
# Of what nobody asks for yet.
_READ_AHEAD = 32 * 1024
# For a request that was on its way to a connection which has begun in a drain.
_CROSSING = 1.0


class Http2Tasks:
    """`data` is what the client has sent so far, and all that it will where it has `ended`."""

    def __init__(self, connection: Connection, context: Context, data: bytes, *, ended: bool) -> None:
        self._connection = connection
        self._context = context
        self._received = bytearray(data)
        self._ended = ended
        self._more = asyncio.Event()
        self._group = TaskGroup(context.loop)
        state = ConnectionState({CONNECTION: connection})
        ends = None, None
        self.protocol = Http2(context.wrapped, context.config, context, self._group, state, False, *ends, self._send)

    @property
    def has_data(self) -> bool:
        """That its protocol has not seen yet."""
        return bool(self._received)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _READ_AHEAD:
            self._connection.pause_reading()
        self._more.set()

    def eof_received(self) -> None:
        self._ended = True
        self._more.set()

    def connection_lost(self) -> None:
        self._received.clear()
        self.eof_received()

    async def run(self) -> None:
        try:
            async with self._group as group:
                await self.protocol.initiate()
                if self._context.draining:
                    group.spawn(self.protocol.go_away, _CROSSING)
                while data := await self._read():
                    await self.protocol.handle(RawData(data))
                    if self._received:
                        await asyncio.sleep(0)  # others have their turn
                await self.protocol.handle(Closed())
        finally:
            del self.protocol  # it knows this one, and both would wait for the collector of garbage
            self._connection.close()
            self._connection.returned()

    async def _read(self) -> bytes:
        """Nothing at the end. What was read is held by nobody but the protocol while the next bytes are awaited."""
        while not (self._received or self._ended):
            self._more.clear()
            await self._more.wait()
        data = bytes(self._received[:_MAX_READ])
        del self._received[:_MAX_READ]
        if len(self._received) <= _READ_AHEAD:
            self._connection.resume_reading()
        return data

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            self._connection.write(event.data)
            await self._connection.drained()
        elif isinstance(event, Closed):
            self._connection.close()
        elif isinstance(event, Updated):
            if event.idle:
                self._connection.idles()
            else:
                self._connection.begins()
