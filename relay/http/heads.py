"""HTTP/1.1 as bytes, without a connection: the head of a request, what its body is framed by, the head of an answer.

llhttp (by httptools) reads heads, with all of its leniencies off. What it lets through all the same, and two servers
might read in two ways, is refused beside it (RFC 9112, sections 2.2, 3, 5.1, 5.2, 6.3 and 7.1): see `relay.http.http1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from relay.protocol.headers import Headers, lines_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
"""What looks like a head and begins HTTP/2."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_START = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])\r\n" % _TOKEN)
# A line that ends in LF alone, or in CR alone, and a field value that goes on in the next line.
_BAD_LINES = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")
_BARE_LF = re.compile(rb"(?<!\r)\n")
LENGTH = re.compile(rb"[0-9]{1,19}")
_OTHER_CODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*+(?!chunked[ \t]*\r\n)", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILERS = re.compile(rb"(?:%b:[\t\x20-\x7e\x80-\xff]*\r\n)*" % _TOKEN)
_FRAMING = re.compile(rb"^(?:content-length|transfer-encoding):", re.IGNORECASE | re.MULTILINE)
_STATUS_LINES = {status.value: b"HTTP/1.1 %d \r\n" % status for status in HTTPStatus}
# 64 KiB in chunks of one byte took 58 ms in one go: so many steps at a time, three for each chunk, take 2.
_AT_ONCE = 600
# Of a chunk's size, its extensions included.
_MAX_LINE = 4096


class Malformed(Exception):
    """What the client sends is no request, or may be read as two: `status` is the answer."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


@dataclass(slots=True)
class Head:
    """A request's head; names are in lower case. `length` is its body's, None where that comes in chunks."""

    method: str
    target: bytes
    version: str
    headers: Headers
    length: int | None
    keep_alive: bool
    continues: bool
    """Does its client wait to be told to go on (RFC 9110, section 10.1.1)?"""


class _Fields:
    """What llhttp tells of a head."""

    __slots__ = ("found", "whole")

    def __init__(self) -> None:
        self.found: Headers = []
        self.whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.whole = True


def parse(head: bytes) -> Head:
    """A head with its empty line. Raises Malformed."""
    start = _START.match(head)
    if start is None:
        raise Malformed("no request line")
    method, target, version = start.groups()
    if version not in (b"1.0", b"1.1"):
        raise Malformed("a version that is neither 1.0 nor 1.1", 505)
    if _BAD_LINES.search(head) is not None:
        raise Malformed("a line ends in CR or LF alone, or a field value goes on in the next line")
    headers = _fields(head[start.end() :])
    return _framed(method.decode("ascii"), target, version.decode("ascii"), headers)


def _fields(lines: bytes) -> Headers:
    """Of all lines but the first. llhttp knows which methods and targets there are: here that is the application's to
    say."""
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(b"GET / HTTP/1.1\r\n" + lines)
    except httptools.HttpParserUpgrade:
        pass  # it is not followed
    except httptools.HttpParserError as error:
        other = _OTHER_CODING.search(b"\r\n" + lines)
        raise Malformed(str(error), 501 if other else 400) from None
    if not fields.whole:
        raise Malformed("no whole head")
    return fields.found


def _framed(method: str, target: bytes, version: str, headers: Headers) -> Head:
    length: int | None = 0
    framings = hosts = 0
    keep_alive = version == "1.1" and method != "CONNECT"  # what follows that is a tunnel's, for whoever believes in it
    continues = False
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            framings += 1
            if not LENGTH.fullmatch(value):
                raise Malformed("Content-Length is not one number")
            length = int(value)
        elif name == b"transfer-encoding":
            framings += 1
            if value.lower() != b"chunked":
                raise Malformed("a transfer coding that is not chunked", 501)
            if version != "1.1":
                raise Malformed("Transfer-Encoding outside an HTTP/1.1 head")
            length = None
        elif name == b"connection":
            keep_alive = keep_alive and b"close" not in (token.strip() for token in value.lower().split(b","))
        elif name == b"expect":
            continues = continues or (version == "1.1" and value.lower() == b"100-continue")
    if framings > 1:
        raise Malformed("more than one framing header")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise Malformed("not one Host")
    return Head(method, target, version, headers, length, keep_alive, continues)


class Received:
    """The bytes that a connection has received and nobody has taken yet. More than `limit` of them are no head
    that goes on."""

    __slots__ = ("_looked", "data", "limit")

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.limit = limit
        self._looked = 0

    def take(self, size: int) -> bytes:
        self._looked = 0
        if size >= len(self.data):
            data = bytes(self.data)
            self.data.clear()
        else:
            data = bytes(self.data[:size])
            del self.data[:size]
        return data

    def take_head(self) -> bytes | None:
        """One, as far as its empty line; None as long as that has not come. Raises Malformed."""
        if self.data and self.data[0] <= 0x20:  # a handshake of TLS, say, whose client waits for its answer
            raise Malformed("no line of a head")
        looked = max(0, self._looked - 3)
        end = self.data.find(b"\r\n\r\n", looked)
        if end >= 0:
            return self.take(end + 4)
        if _BARE_LF.search(self.data, looked) is not None:
            raise Malformed("a line ends in LF alone")
        if len(self.data) > self.limit:
            raise Malformed("a head without end", 431)
        self._looked = len(self.data)
        return None

    def take_line(self) -> bytes | None:
        end = self.data.find(b"\n")
        if end < 0:
            if len(self.data) > _MAX_LINE:
                raise Malformed("a line without end")
            return None
        return self.take(end + 1)


class Body:
    """A request's body as it comes."""

    __slots__ = ("_left", "_state", "whole")

    def __init__(self, length: int | None) -> None:
        self._left = length or 0  # of the body, or of a chunk
        self._state = "size" if length is None else "length"
        self.whole = length == 0

    def take(self, received: Received) -> bytes:
        """What of it has come, of chunks no more than takes a moment; then it may be `whole`. Raises Malformed."""
        if self._state == "length":
            data = received.take(self._left)
            self._left -= len(data)
            self.whole = not self._left
            return data
        parts: list[bytes] = []
        while len(parts) < _AT_ONCE and (part := self._step(received)) is not None:
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _step(self, received: Received) -> bytes | None:
        """None where more has to come, or nothing more will."""
        if self.whole or not received.data:
            return None
        if self._state == "size":
            return self._size(received)
        if self._state == "data":
            data = received.take(self._left)
            self._left -= len(data)
            if not self._left:
                self._state = "end"
            return data
        if self._state == "end":
            if not b"\r\n".startswith(bytes(received.data[:2])):
                raise Malformed("a chunk is longer than it says")
            if len(received.data) < 2:
                return None
            received.take(2)
            self._state = "size"
            return b""
        return self._trailers(received)

    def _size(self, received: Received) -> bytes | None:
        line = received.take_line()
        if line is None:
            return None
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise Malformed("malformed chunk size")
        self._left = int(found[1], 16)
        self._state = "data" if self._left else "trailers"
        return b""

    def _trailers(self, received: Received) -> bytes | None:
        if received.data[:2] == b"\r\n":
            received.take(2)
        elif received.data == b"\r":
            return None
        else:
            trailers = received.take_head()
            if trailers is None:
                return None
            if not _TRAILERS.fullmatch(trailers[:-2]) or _FRAMING.search(trailers):
                raise Malformed("malformed trailers")
        self.whole = True
        return None


def answer_head(status: int, headers: Headers) -> bytes:
    """Raises ValueError for what is no header."""
    return b"%b%b\r\n" % (_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, lines_of(headers))
