"""A reverse proxy that breaks answers where a test says: at a byte of the body, before it, before the head.

It forwards one request per client connection, in a thread with an event loop of its own. It promises that the bytes
it lets through are unchanged, that a cut before the head comes only when the server has answered, and that a client
that leaves is noticed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

BEFORE_HEAD = -1


Way = Literal["fin", "rst", "clean", "close", "hang"]


@dataclass(frozen=True)
class Fate:
    """What becomes of one request. `clean` ends the body properly, as proxies do that hide a cut; `hang` ends
    nothing and sends nothing more."""

    cut_at: int | None = None
    """After so many bytes of the body; None: not at all."""
    how: Way = "fin"
    to: int = 0
    """Which of the proxy's servers is asked."""
    instead: bytes | None = None
    """Answer this, and ask no server."""
    without: tuple[str, ...] = ()
    """Headers of the request that the server does not get."""


@dataclass
class Asked:
    """One request, as the client sent it."""

    path: str
    headers: dict[str, str]
    body: bytes
    sent: int = 0
    """How many bytes of the answer's body the client was sent."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when the client has hung up."""

    @property
    def model(self) -> str:
        return str(self.json.get("model", ""))

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body or "{}")
        return parsed


class _Over(Exception):
    """The connection to the client has been dealt with."""


class CuttingProxy:
    """`fate` is asked once for every request, on the proxy's own thread. Use it as a context manager."""

    def __init__(self, *servers: str, fate: Callable[[Asked], Fate] = lambda asked: Fate()) -> None:
        self.fate = fate
        self._servers = [urlsplit(server) for server in servers]
        self._asked: list[Asked] = []
        self._changed = threading.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cutting-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def asked(self, model: str | None = None) -> list[Asked]:
        with self._changed:
            return [asked for asked in self._asked if model is None or asked.model == model]

    def wait_for(self, happened: Callable[[], bool], timeout: float = 20.0) -> None:
        """Block until it has; it is looked at after every request and every piece of an answer."""
        with self._changed:
            if not self._changed.wait_for(happened, timeout):
                raise TimeoutError(f"not within {timeout} s; {len(self._asked)} requests came")

    def __enter__(self) -> CuttingProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(15)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(15)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            head, body = await _request(reader)
            lines = head.decode("latin-1").split("\r\n")
            pairs = (line.partition(": ") for line in lines[1:] if line)
            asked = Asked(lines[0].split(" ")[1], {name.lower(): value for name, _, value in pairs}, body)
            with self._changed:
                self._asked.append(asked)
                self._changed.notify_all()
            fate = self.fate(asked)
            if fate.instead is not None:
                client.write(fate.instead)
                await client.drain()
                return
            answering = asyncio.ensure_future(self._answer(asked, fate, head, client))
            leaving = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                asked.gone.set()
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            client.close()

    async def _answer(self, asked: Asked, fate: Fate, head: bytes, client: asyncio.StreamWriter) -> None:
        target = self._servers[fate.to]
        try:
            reader, server = await asyncio.open_connection(target.hostname, target.port)
        except OSError:
            await _end(client, "rst")
            return
        try:
            lines = head.split(b"\r\n")
            kept = [line for line in lines if line.partition(b":")[0].decode().lower() not in fate.without]
            server.write(b"\r\n".join(kept) + asked.body)
            await self._forward(asked, fate, reader, client)
        except _Over:
            pass
        except (OSError, asyncio.IncompleteReadError):
            await _end(client, "rst")
        finally:
            server.transport.abort()

    async def _forward(
        self, asked: Asked, fate: Fate, server: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        head = await server.readuntil(b"\r\n\r\n")
        if fate.cut_at == BEFORE_HEAD:
            await _end(client, fate.how)
            raise _Over
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:"))
        closes = fate.cut_at is None or fate.how in ("clean", "close")
        client.write(head[:-2] + b"connection: close\r\n\r\n" if closes else head)
        if b"\r\ntransfer-encoding: chunked\r\n" not in head.lower():
            while data := await server.read(65536):
                client.write(data)
                await client.drain()
            return
        while size := int(await server.readuntil(b"\r\n"), 16):
            data = (await server.readexactly(size + 2))[:-2]
            left = None if fate.cut_at is None else fate.cut_at - asked.sent
            await self._send(asked, data[:left] if left is not None else data, client)
            if left is not None and left <= len(data):
                await _end(client, fate.how)
                raise _Over
        client.write(b"0\r\n\r\n")
        await client.drain()

    async def _send(self, asked: Asked, data: bytes, client: asyncio.StreamWriter) -> None:
        if not data:
            return
        client.write(b"%x\r\n%b\r\n" % (len(data), data))
        await client.drain()
        with self._changed:
            asked.sent += len(data)
            self._changed.notify_all()


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head with `connection: close` in it, and the body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
    length = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0)
    return b"\r\n".join([*lines, b"connection: close", b"", b""]), await reader.readexactly(length)


async def _end(client: asyncio.StreamWriter, how: str) -> None:
    match how:
        case "rst":
            linger_zero = struct.pack("ii", 1, 0)
            with contextlib.suppress(OSError):
                client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
            client.transport.abort()
        case "hang":
            await asyncio.Event().wait()
        case "clean":
            client.write(b"0\r\n\r\n")
            client.close()
        case _:
            client.close()
