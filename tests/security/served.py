"""The relay's HTTP server around an application that a test scripts, and a client that says and breaks off what it
likes, in one process: what is left of a connection can be counted."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from relay.config import LimitSettings
from relay.http.server import Server

Application = Callable[[Scope, Receive, Send], Awaitable[None]]
PATIENCE = 10.0


class Served:
    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    @property
    def connections(self) -> int:
        return len(self.server.connections)

    async def all_over(self) -> None:
        """Returns when the server has let go of every connection."""
        await until(lambda: not self.connections)

    async def connect(self) -> Peer:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Peer(connection)


class Peer:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.heard = b""
        self._loop = asyncio.get_running_loop()

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def hear(self, until: bytes | None = None) -> bytes:
        """All that comes until that is in it, or the server has ended the connection."""
        async with asyncio.timeout(PATIENCE):
            while until is None or until not in self.heard:
                try:
                    data = await self._loop.sock_recv(self.socket, 1 << 16)
                except ConnectionError:
                    break
                if not data:
                    break
                self.heard += data
        return self.heard

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@asynccontextmanager
async def served(app: Application, **limits: Any) -> AsyncIterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app, listener, LimitSettings(**limits))
    await server.start()
    try:
        yield Served(server, listener.getsockname()[1])
    finally:
        await server.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def whole_body(receive: Receive) -> bytes:
    """Raises ConnectionResetError where the client has gone."""
    parts = []
    while True:
        message: Message = await receive()
        if message["type"] != "http.request":
            raise ConnectionResetError
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def answer(send: Send, body: bytes = b"ok", status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
