"""A server that means harm by what it sends, not by a cut: it begins a stream, breaks it, and answers resumes badly.

Use it as a context manager; `posts` counts the requests, `sent` the bytes of the answers to resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable

from tests.client.played import HEAD, frame

BEGIN = "".join(f"{name}: {value}\r\n" for name, value in HEAD.items())
STREAM_HEAD = f"HTTP/1.1 200 OK\r\n{BEGIN}connection: close\r\n\r\n".encode()
REFUSAL = b"HTTP/1.1 503 No\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
DRIP = 0.1


async def _drip(first: bytes, then: bytes) -> AsyncGenerator[bytes, None]:
    yield first
    while True:
        await asyncio.sleep(DRIP)
        yield then


async def drip_a_refusal() -> AsyncGenerator[bytes, None]:
    async for part in _drip(REFUSAL, b"x"):
        yield part


async def drip_a_head() -> AsyncGenerator[bytes, None]:
    async for part in _drip(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"):
        yield part


async def flood_a_refusal() -> AsyncGenerator[bytes, None]:
    yield REFUSAL
    while True:
        yield b"x" * 65536


async def flood_an_event() -> AsyncGenerator[bytes, None]:
    yield STREAM_HEAD + b"data: "
    while True:
        yield b"x" * 65536


async def only_a_heartbeat() -> AsyncGenerator[bytes, None]:
    yield STREAM_HEAD + b": hb\n"


async def nothing_at_all() -> AsyncGenerator[bytes, None]:
    await asyncio.sleep(3600)
    yield b""


async def breaks_off() -> AsyncGenerator[bytes, None]:
    yield b"HTTP/1.1 200"


HARM = {
    harm.__name__: harm
    for harm in (
        drip_a_refusal,
        drip_a_head,
        flood_a_refusal,
        flood_an_event,
        only_a_heartbeat,
        nothing_at_all,
        breaks_off,
    )
}


class Adversary:
    def __init__(self, harm: Callable[[], AsyncGenerator[bytes, None]], *, begins: bool = True) -> None:
        """`begins`: what is no resume gets the beginning of a stream; else harm, too."""
        self.posts = 0
        self.keys: list[str | None] = []
        self.sent = 0
        self.port = 0
        self._harm = harm
        self._begins = begins
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="adversary", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Adversary:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(15)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(15)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close a moment after their abort

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.posts += 1
            lines = [line.partition(": ") for line in head.decode("latin-1").split("\r\n")]
            self.keys.append(next((value for name, _, value in lines if name.lower() == "idempotency-key"), None))
            if self._begins and b"last-event-id" not in head.lower():
                writer.write(STREAM_HEAD + frame(1))
                await writer.drain()
                return
            async with contextlib.aclosing(self._harm()) as parts:
                async for part in parts:
                    writer.write(part)
                    self.sent += len(part)
                    await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
