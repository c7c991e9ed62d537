"""A TCP proxy that breaks on command, between a relay and its store, or another relay.

It runs in a thread with an event loop of its own; a test sets `mode` from its own thread, for the connections
that are open and for those to come. It promises that bytes are never changed or reordered, that a connection
which one side closes is closed on the other, and that what it swallows never arrives later.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from tests.support.processes import free_port
from tests.support.threaded import ServerThread


@dataclass(frozen=True)
class Pass:
    """Everything goes through."""


@dataclass(frozen=True)
class Delay:
    """Everything goes through, so many seconds later, each way; the throughput is kept."""

    seconds: float


@dataclass(frozen=True)
class Narrow:
    """Replies, of all connections together, go through at so many bytes a second."""

    rate: float


@dataclass(frozen=True)
class Blackhole:
    """Connections are accepted and kept, and nothing comes out on either side."""


@dataclass(frozen=True)
class HalfOpen:
    """The open connections are kept, and nothing comes out of them any more; everything goes through others."""


@dataclass(frozen=True)
class Refuse:
    """Open connections are reset and new ones refused."""


@dataclass(frozen=True)
class DropReplies:
    """Requests go through; the next reply of each connection is swallowed, and the connection cut."""


Mode = Pass | Delay | Narrow | Blackhole | HalfOpen | Refuse | DropReplies


class FaultProxy(ServerThread):
    """Forwards its port to a server's, the first that takes the connection. Use it as a context manager."""

    def __init__(self, *target_ports: int) -> None:
        super().__init__(free_port())
        self.connections = 0
        """How many connections have been accepted."""
        self.requested = 0
        """How many bytes of requests have been forwarded."""
        self.replied = 0
        """How many bytes of replies have been forwarded."""
        self.dropped = 0
        """How many connections were cut for a swallowed reply."""
        self.line_free_at = 0.0
        """When a narrow line has carried what it has been given."""
        self._target_ports = target_ports
        self._mode: Mode = Pass()
        self._links: set[_Link] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        """In effect on return, for open connections too. What a blackhole has swallowed does not come back, so
        its connections are cut when it ends."""
        self.run(self._switch(mode))

    async def _switch(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        if isinstance(mode, Refuse):
            await self._stop_listening()
        elif self.server is None:
            await self.listen()
        for link in list(self._links):
            if isinstance(mode, HalfOpen):
                link.dead = True
            elif isinstance(mode, Refuse) or (isinstance(before, Blackhole) and mode != before):
                link.cut()

    async def _stop_listening(self) -> None:
        server, self.server = self.server, None
        if server is None:
            return
        for listening in server.sockets:
            self.loop.remove_reader(listening.fileno())
        for _ in range(5):  # asyncio loses a connection that is accepted in the turn in which its server is closed
            await asyncio.sleep(0)
        server.close()

    async def closing(self) -> None:
        await self._stop_listening()
        for link in list(self._links):
            link.cut()
        await asyncio.gather(*(link.ended.wait() for link in list(self._links)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        to_server = await self._connect()
        if to_server is None:
            writer.transport.abort()
            return
        if self.server is None:
            writer.transport.abort()
            to_server[1].transport.abort()
            return
        link = _Link(self, writer, to_server[1])
        self._links.add(link)
        try:
            await link.run(reader, to_server[0])
        finally:
            self._links.discard(link)
            link.ended.set()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for port in self._target_ports:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return None


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: FaultProxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ended = asyncio.Event()
        self.dead = False
        """Does nothing come out of it any more?"""
        self._proxy = proxy
        self._client = client
        self._server = server

    def cut(self) -> None:
        self._client.transport.abort()
        self._server.transport.abort()

    async def run(self, from_client: asyncio.StreamReader, from_server: asyncio.StreamReader) -> None:
        lanes = [
            asyncio.create_task(self._forward(from_client, self._server, replies=False)),
            asyncio.create_task(self._forward(from_server, self._client, replies=True)),
        ]
        await asyncio.wait(lanes, return_when=asyncio.FIRST_COMPLETED)
        self.cut()
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        proxy = self._proxy
        loop = asyncio.get_running_loop()
        due_last = 0.0

        def send(data: bytes) -> None:
            if not writer.transport.is_closing() and not isinstance(proxy.mode, Blackhole) and not self.dead:
                writer.write(data)

        with contextlib.suppress(OSError):
            while data := await reader.read(16384):
                mode = proxy.mode
                if isinstance(mode, Blackhole) or self.dead:
                    continue
                if isinstance(mode, DropReplies) and replies:
                    proxy.dropped += 1
                    return
                if replies:
                    proxy.replied += len(data)
                else:
                    proxy.requested += len(data)
                # After a delay that has just ended, what it still holds goes first.
                # Timers for the same moment may fire in any order, so no two are.
                now = loop.time()
                if isinstance(mode, Narrow) and replies:
                    proxy.line_free_at = max(proxy.line_free_at, now) + len(data) / mode.rate
                    await asyncio.sleep(proxy.line_free_at - now)
                due = max(due_last + 1e-6, now + (mode.seconds if isinstance(mode, Delay) else 0.0))
                if due <= now:
                    send(data)
                    await writer.drain()
                else:
                    due_last = due
                    loop.call_at(due, send, data)
