"""An HTTP/1.1 response, byte by byte, at the least cost: chunked, with a Content-Length, or until the close.

It says whether the body was whole. It decodes nothing and does no I/O.
"""

from __future__ import annotations


class BadResponse(Exception):
    """Bytes that are no HTTP/1.1 response."""


class Response:
    """Feed it what the network brings; `feed` returns the bytes of the body that came with it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.whole = False
        """The body has ended, and in the way that its head announced."""
        self._pending = b""
        self._chunked = False
        self._left = -1
        """Bytes of this chunk or of the body still to come; -1: unknown."""
        self._in_trailer = False
        self._after_chunk = 0

    def feed(self, data: bytes) -> bytes:
        """Raises BadResponse."""
        if self._pending:
            data, self._pending = self._pending + data, b""
        if not self.status:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._pending = head
                return b""
            self._read_head(head)
        if self._chunked:
            return self._dechunk(data)
        if self._left >= 0:
            data = data[: self._left]
            self._left -= len(data)
            self.whole = self._left == 0
        return data

    def eof(self) -> None:
        """The peer has closed."""
        if self.status and not self._chunked and self._left < 0:
            self.whole = True

    def _read_head(self, head: bytes) -> None:
        line, *fields = head.split(b"\r\n")
        words = line.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise BadResponse(f"the answer is not HTTP/1.1: {line[:80]!r}")
        self.status = int(words[1])
        self.headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(b":") for f in fields)}
        self._chunked = b"chunked" in self.headers.get(b"transfer-encoding", b"").lower()
        if self._chunked:
            self._left = 0
        elif self.status in (204, 304):
            self._left, self.whole = 0, True
        elif b"content-length" in self.headers:
            self._left = int(self.headers[b"content-length"])
            self.whole = self._left == 0

    def _dechunk(self, data: bytes) -> bytes:
        parts = []
        position, size = 0, len(data)
        while position < size and not self.whole:
            if self._left:
                part = data[position : position + self._left]
                parts.append(part)
                position += len(part)
                self._left -= len(part)
                if not self._left:
                    self._after_chunk = 2
                continue
            if self._after_chunk:
                step = min(self._after_chunk, size - position)
                position += step
                self._after_chunk -= step
                continue
            end = data.find(b"\r\n", position)
            if end < 0:
                self._pending = data[position:]
                break
            line, position = data[position:end], end + 2
            if self._in_trailer:
                self.whole = not line
                continue
            try:
                length = int(line.partition(b";")[0], 16)
            except ValueError:
                raise BadResponse(f"a chunk's size is not a number: {line[:80]!r}") from None
            if not length:
                self._in_trailer = True
            elif position + length + 2 <= size:
                parts.append(data[position : position + length])
                position += length + 2
            else:
                self._left = length
        return parts[0] if len(parts) == 1 else b"".join(parts)
