"""A client that sees what a browser or an SDK hides: raw bytes, heartbeats, and how a body really ended.

Synchronous, on a plain socket. It never repairs anything: what the relay sent is what a test gets.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

Ending = Literal["zero-chunk", "length", "fin", "reset", "closed-by-client"]


class ConnectionEnded(ConnectionError):
    """The connection is over; raised to the caller only when it ends before the response's head."""

    def __init__(self, how: Ending) -> None:
        super().__init__(f"the connection ended: {how}")
        self.how: Ending = how


@dataclass(frozen=True)
class RawEvent:
    """One block that ended in a blank line, or one heartbeat; of a comment, only ``raw`` is set."""

    id: str | None
    event: str | None
    data: str | None
    raw: bytes

    @property
    def is_heartbeat(self) -> bool:
        """A comment, or the ping without an id that messages streams may carry instead."""
        comment = self.event is None and self.data is None
        return self.id is None and (comment or self.event == "ping")

    @property
    def json(self) -> Any:
        return json.loads(self.data or "")


class RawStream:
    """One response. Iterate it for events and heartbeats; ``raw_body`` has every byte read so far."""

    def __init__(self, connection: socket.socket, head_only: bool = False) -> None:
        self._socket = connection
        self._unread = b""
        self._chunk_left = 0
        self._block = b""
        self.raw_body = b""
        self.ended: Ending | None = None
        """How the body ended; None while it has not."""
        status_line, *lines = self._read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.status = int(status_line.split(" ", 2)[1])
        pairs = (line.partition(":") for line in lines if line)
        self.header_list = [(name.strip(), value.strip()) for name, _, value in pairs]
        self.headers = {name.lower(): value for name, value in self.header_list}
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        self._length_left = None if self._chunked else _length(self.headers)
        if head_only or self.status in (204, 304) or self._length_left == 0:
            self.ended = "length"

    def __iter__(self) -> Iterator[RawEvent]:
        """Events and heartbeats up to the end of the body; an unfinished event at the end is not one."""
        while True:
            while (block := self._next_block()) is not None:
                yield _parse(block)
            if not self._read_more():
                return

    def events(self, limit: int | None = None) -> list[RawEvent]:
        """The next events without heartbeats: ``limit`` of them, or all. Leaves the socket open."""
        found: list[RawEvent] = []
        if limit == 0:
            return found
        for event in self:
            if not event.is_heartbeat:
                found.append(event)
                if len(found) == limit:
                    break
        return found

    def take(self, count: int) -> list[RawEvent]:
        """So many events, then hang up."""
        found = self.events(count)
        self.close()
        return found

    def take_bytes(self, count: int) -> bytes:
        """So many bytes of the body from its start (fewer if it ends before), then hang up."""
        while len(self.raw_body) < count and self._read_more():
            pass
        self.close()
        return self.raw_body[:count]

    def read(self) -> bytes:
        """The whole body."""
        while self._read_more():
            pass
        return self.raw_body

    @property
    def json(self) -> Any:
        return json.loads(self.read())

    def close(self, reset: bool = False) -> None:
        """Hang up, with a RST if asked."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        self.ended = self.ended or "closed-by-client"

    def __enter__(self) -> RawStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The body, de-chunked one network read at a time.

    def _read_more(self) -> bool:
        """Append the next bytes of the body; False at its end, with ``ended`` set."""
        if self.ended is not None:
            return False
        try:
            data = self._next_chunk_part() if self._chunked else self._next_plain_part()
        except ConnectionEnded as end:
            self.ended = end.how
            self._socket.close()
            return False
        self.raw_body += data
        self._block += data
        return True

    def _next_chunk_part(self) -> bytes:
        if self._chunk_left == 0:
            size = self._read_until(b"\r\n") or self._read_until(b"\r\n")  # the last chunk's own line end first
            self._chunk_left = int(size.partition(b";")[0], 16)
            if self._chunk_left == 0:
                self._read_until(b"\r\n")
                raise ConnectionEnded("zero-chunk")
        data = self._take_unread(self._chunk_left)
        self._chunk_left -= len(data)
        return data

    def _next_plain_part(self) -> bytes:
        if self._length_left is None:
            return self._take_unread(1 << 16)
        if self._length_left == 0:
            raise ConnectionEnded("length")
        data = self._take_unread(self._length_left)
        self._length_left -= len(data)
        return data

    def _take_unread(self, limit: int) -> bytes:
        if not self._unread:
            self._receive()
        data, self._unread = self._unread[:limit], self._unread[limit:]
        return data

    def _read_until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            self._receive()
        data, _, self._unread = self._unread.partition(mark)
        return data

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionResetError:
            raise ConnectionEnded("reset") from None
        if not data:
            raise ConnectionEnded("fin")
        self._unread += data

    def _next_block(self) -> bytes | None:
        """The next whole event, or a heartbeat: a comment line where no event has begun."""
        line, found, rest = self._block.partition(b"\n")
        if found and line.startswith(b":") and not rest.startswith(b"\n"):
            self._block = rest
            return line + b"\n"
        block, found, rest = self._block.partition(b"\n\n")
        if not found:
            return None
        self._block = rest
        return block + b"\n\n"


def open_stream(
    url: str,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    body: object = None,
    timeout: float = 20.0,
) -> RawStream:
    """Send one request and read the response's head. ``body``: bytes as they are, anything else as JSON. Without a
    credential or a ticket of its own it has one that all such requests share; an empty ``authorization`` is none."""
    parts = urlsplit(url)
    payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    default_port = 443 if parts.scheme == "https" else 80
    connection = socket.create_connection((parts.hostname or "", parts.port or default_port), timeout)
    if parts.scheme == "https":
        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=parts.hostname)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    all_headers = {
        "host": parts.netloc,
        "content-length": str(len(payload)),
        "content-type": "application/json",
    }
    if body is None and method in ("GET", "HEAD", "DELETE"):
        all_headers = {"host": parts.netloc}
    all_headers |= {name.lower(): value for name, value in (headers or {}).items()}
    if not {"authorization", "x-api-key", "api-key"} & all_headers.keys() and "ticket=" not in parts.query:
        all_headers["authorization"] = "Bearer of-the-tests"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"{method} {target} HTTP/1.1",
        *(f"{name}: {value}" for name, value in all_headers.items()),
        "",
        "",
    ]
    try:
        connection.sendall("\r\n".join(lines).encode("latin-1") + payload)
        return RawStream(connection, head_only=method == "HEAD")
    except BaseException:
        connection.close()
        raise


def _length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length")
    return None if value is None else int(value)


def _parse(raw: bytes) -> RawEvent:
    fields: dict[str, str] = {}
    for line in raw.decode().split("\n"):
        name, colon, value = line.partition(":")
        if not colon or not name:
            continue
        value = value.removeprefix(" ")
        fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value
    return RawEvent(fields.get("id"), fields.get("event"), fields.get("data"), raw)
