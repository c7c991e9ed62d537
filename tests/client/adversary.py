"""A server that means harm by what it sends, not by a cut: it begins a stream, breaks it, and answers resumes badly.

Use it as a context manager; `posts` counts the requests, `sent` the bytes of the answers to resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from tests.client.played import HEAD, frame
from tests.support.http import headers, read_head
from tests.support.threaded import ServerThread

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


class Adversary(ServerThread):
    def __init__(self, harm: Callable[[], AsyncGenerator[bytes, None]], *, begins: bool = True) -> None:
        """`begins`: what is no resume gets the beginning of a stream; else harm, too."""
        super().__init__()
        self.posts = 0
        self.keys: list[str | None] = []
        self.sent = 0
        self._harm = harm
        self._begins = begins

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = headers(await read_head(reader))
            self.posts += 1
            self.keys.append(asked.get("idempotency-key"))
            if self._begins and "last-event-id" not in asked:
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
