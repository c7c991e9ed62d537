"""The HTTP server: Hypercorn's connections and protocols (HTTP/1.1, h2c) on the relay's own listener.

Hypercorn's own accept loop is not used, for two reasons. A kept-alive connection that its client closes
while idle keeps its descriptor until the keep-alive time-out (its connection waits for its own idle timer);
and its shutdown offers no moment between "take no more" and "3 seconds left", which a drain needs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp

from relay.api.exchange import ABORT, DIRECT, READ_TIMEOUT, ConnectionCut
from relay.config import LimitSettings
from relay.http2 import Protocol
from relay.protocol.headers import MAX_HEADER_BYTES

# Hypercorn's own backlog of 100 drops SYNs under a burst, which come back after a second and more.
_BACKLOG = 4096
_HTTP2_STREAMS = 1000
_WRITE_AHEAD = 64 * 1024
_GRACE = 3.0
_SETTLE = 0.25


class _Chunks:
    """`Direct` on a connection of Hypercorn's, whose state does not change between a head and an end. For the same
    bytes its own way from `send` to the socket was a fifth of the CPU of an event."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._transport = writer.transport

    def write(self, data: bytes) -> bool:
        transport = self._transport
        if transport.is_closing():
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return transport.get_write_buffer_size() < _WRITE_AHEAD

    async def send(self, data: bytes) -> None:
        try:
            if data:
                self.write(data)
            await self._writer.drain()
        except (ConnectionError, RuntimeError):
            raise ConnectionCut from None


class _Connection(TCPServer):
    protocol: Protocol

    def __init__(self, limits: LimitSettings, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._limits = limits

    async def run(self) -> None:
        connection = self.writer.get_extra_info("socket")
        try:
            client = parse_socket_addr(connection.family, connection.getpeername())
            server = parse_socket_addr(connection.family, connection.getsockname())
            async with TaskGroup(self.loop) as group:
                self._task_group = group
                state = ConnectionState(self.state)
                self.protocol = Protocol(
                    self.app, self.config, self.context, group, state, False, client, server, self.protocol_send
                )
                await self.protocol.initiate()
                await self.idle_task.restart(group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass  # the client has gone
        finally:
            await self._close()

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        try:
            async with asyncio.timeout(self._limits.idle_timeout if self.protocol.begun else self._limits.read_timeout):
                await self.context.terminated.wait()
        except TimeoutError:
            pass
        await asyncio.shield(self._initiate_server_close())


class _NoCuts(logging.Filter):
    """Cutting a connection is an answer, not an error of the application."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ConnectionCut)


def _config() -> Config:
    config = Config()
    config.include_server_header = False
    # Heads up to this size reach the application, which answers in the API's own error shape.
    config.h11_max_incomplete_size = 8 * MAX_HEADER_BYTES
    config.h2_max_header_list_size = 8 * MAX_HEADER_BYTES
    # Proxies put many streams on one connection; by default it is 100, and a client that needs more waits.
    config.h2_max_concurrent_streams = _HTTP2_STREAMS
    # At this number, 1000 by default, an HTTP/2 connection is closed under all the streams that it carries.
    config.keep_alive_max_requests = 1 << 62
    config.accesslog = None
    logger = logging.getLogger("relay.http")
    logger.addFilter(_NoCuts())
    config.errorlog = logger
    return config


async def serve(
    app: ASGIApp, listener: socket.socket, until: Callable[[], Awaitable[None]], limits: LimitSettings
) -> None:
    """Serve until `until` returns; then open connections have a moment to end."""
    loop = asyncio.get_running_loop()
    config = _config()
    context = WorkerContext(None)
    wrapped = ASGIWrapper(app)  # type: ignore[arg-type]
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        state = {ABORT: writer.transport.abort, DIRECT: _Chunks(writer), READ_TIMEOUT: limits.read_timeout}
        await _Connection(limits, wrapped, loop, config, context, state, reader, writer)

    server = await asyncio.start_server(connected, sock=listener, backlog=_BACKLOG)
    try:
        await until()
    finally:
        # First no more connections, then a moment for the requests of those just accepted, then the idle ones.
        server.close()
        if connections:
            await asyncio.wait(connections, timeout=_SETTLE)
        await context.terminated.set()
        if connections:
            await asyncio.wait(connections, timeout=_GRACE)
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
