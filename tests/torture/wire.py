"""One HTTP/1.1 request over one connection, and everything that can be seen of its answer.

Nothing is repaired: an answer that ends without its last chunk is a cut, an event without its blank line is none. Every
wait is bounded by the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Literal

from tests.torture.oracle import Event

How = Literal["clean", "cut", "silent"]
_LONGEST_HEAD = 1 << 16


class Unanswered(Exception):
    """No head of an answer came; the message says why."""


class Answer:
    """The head of an answer, and its body as it comes. `close` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split(" ", 2)[1])
        pairs = (line.partition(":") for line in lines if line)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self.ended: How | None = None
        self.heard = asyncio.get_running_loop().time()
        """When the last bytes came."""
        self._reader = reader
        self._writer = writer
        self._body = _Body(self.headers, self.status)
        self._parser = Parser()

    async def events(self, silence: float) -> list[Event]:
        """The next events, at least one, or none where the body has ended (`ended` says how)."""
        while self.ended is None:
            data = await self._more(silence)
            if data and (found := self._parser.feed(data)):
                return found
        return []

    @property
    def heartbeats(self) -> int:
        return self._parser.heartbeats

    @property
    def unfinished(self) -> bytes:
        """What stands behind the last whole event."""
        return self._parser.rest

    async def read(self, silence: float) -> bytes:
        """The rest of the body. What has come by a cut is returned too."""
        parts = []
        while self.ended is None:
            parts.append(await self._more(silence))
        return b"".join(parts)

    async def _more(self, silence: float) -> bytes:
        if self._body.over:
            self.ended = "clean"
            return b""
        try:
            data = await asyncio.wait_for(self._reader.read(1 << 16), silence)
        except TimeoutError:
            self.ended = "silent"
            return b""
        except OSError:
            self.ended = "cut"
            return b""
        if not data:
            self.ended = "clean" if self._body.until_close else "cut"
            return b""
        self.heard = asyncio.get_running_loop().time()
        return self._body.feed(data)

    def close(self) -> None:
        self._writer.transport.abort()


class _Body:
    """Bytes of the connection to bytes of the body."""

    def __init__(self, headers: Mapping[str, str], status: int) -> None:
        self._chunked = "chunked" in headers.get("transfer-encoding", "")
        length = headers.get("content-length")
        self._left = 0 if status in (204, 304) else int(length) if length is not None else -1
        self.until_close = not self._chunked and self._left < 0
        self.over = not self._chunked and self._left == 0
        self._raw = b""
        self._chunk = 0

    def feed(self, data: bytes) -> bytes:
        if not self._chunked:
            if self._left >= 0:
                self._left -= len(data)
                self.over = self._left <= 0
            return data
        self._raw += data
        parts = []
        while True:
            if self._chunk:
                part = self._raw[: self._chunk]
                if not part:
                    break
                parts.append(part)
                self._raw = self._raw[len(part) :]
                self._chunk -= len(part)
                continue
            line, found, rest = self._raw.removeprefix(b"\r\n").partition(b"\r\n")
            if not found:
                break
            self._chunk = int(line, 16)
            self._raw = rest
            if not self._chunk:
                self.over = True
                break
        return b"".join(parts)


class Parser:
    """Bytes of the body to events (WHATWG, 9.2.6, as far as the relay uses it)."""

    def __init__(self) -> None:
        self.rest = b""
        self.heartbeats = 0

    def feed(self, data: bytes) -> list[Event]:
        self.rest += data
        found = []
        while self.rest:
            if self.rest.startswith(b":"):  # a comment between two events: a line, and no blank one
                _, whole, rest = self.rest.partition(b"\n")
                if not whole:
                    break
                self.rest = rest
                self.heartbeats += 1
                continue
            block, whole, rest = self.rest.partition(b"\n\n")
            if not whole:
                break
            self.rest = rest
            event = _event(block)
            if event.type == "ping" and event.id is None:
                self.heartbeats += 1
            else:
                found.append(event)
        return found


def _event(block: bytes) -> Event:
    fields: dict[str, str] = {}
    for line in block.decode().split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value
    return Event(fields.get("id"), fields.get("event"), fields.get("data", ""))


async def ask(
    port: int, method: str, target: str, headers: Mapping[str, str], body: bytes = b"", *, wait: float
) -> Answer:
    """Send one request on a connection of its own and wait so long for the answer's head. Raises Unanswered."""
    lines = [f"{method} {target} HTTP/1.1", f"host: 127.0.0.1:{port}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    try:
        async with asyncio.timeout(wait):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LONGEST_HEAD)
            try:
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                head = await reader.readuntil(b"\r\n\r\n")
            except BaseException:
                writer.transport.abort()
                raise
    except TimeoutError:
        raise Unanswered("no answer in time") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Unanswered(type(error).__name__) from None
    with contextlib.suppress(ValueError):
        return Answer(reader, writer, head)
    writer.transport.abort()
    raise Unanswered(f"no HTTP: {head[:100]!r}")
