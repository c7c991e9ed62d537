"""The reading of HTTP/1.1: wherever TCP cuts them, the same requests; of each the lines and the body that it has, and
none that h11, which reads more leniently, does not see there.

The first byte of the input says where it is cut.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import h11

from relay.http.heads import PREFACE, Body, Head, Malformed, Received, parse

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n|\n[ \t]")
_LIMIT = 1 << 16


class Request(NamedTuple):
    raw: bytes
    head: Head
    body: bytes


def one(data: bytes) -> None:
    at, data = (data[0], data[1:]) if data else (0, data)
    found, end = read([data])
    for size in {1, 1 + at % 16}:
        assert read([data[n : n + size] for n in range(0, len(data), size)]) == (found, end), "a cut changes something"
    for request in found:
        check(request)
    theirs = leniently(data)[: len(found)]
    ours = [(request.head.method.encode(), request.head.target, request.body) for request in found]
    assert ours == theirs, "h11 sees other requests"


def read(pieces: list[bytes]) -> tuple[list[Request], str]:
    """As a connection does whose application answers at once."""
    received, found = Received(_LIMIT), list[Request]()
    begun: tuple[bytes, Head, Body, list[bytes]] | None = None
    try:
        for piece in pieces:
            received.data += piece
            while received.data or begun is not None:
                if begun is None:
                    raw = received.take_head()
                    if raw is None:
                        break
                    if raw == PREFACE and not found:
                        return found, "HTTP/2"
                    head = parse(raw)
                    begun = raw, head, Body(head.length), []
                raw, head, body, parts = begun
                if not body.whole and received.data:
                    parts.append(body.take(received))
                if not body.whole:
                    break
                found.append(Request(raw, head, b"".join(parts)))
                begun = None
                if not head.keep_alive:
                    return found, "the last"
    except Malformed:
        return found, "malformed"
    return found, "a part" if begun is not None or received.data else "all"


def check(request: Request) -> None:
    first, *lines = request.raw[:-4].split(b"\r\n")
    assert not _CONTROL.search(request.raw), "a line that may be read as two"
    method, target, version = first.split(b" ")
    head = request.head
    assert (head.method.encode(), head.target, b"HTTP/" + head.version.encode()) == (method, target, version)
    fields = [(name, value) for name, _, value in (line.partition(b":") for line in lines)]
    assert all(_TOKEN.fullmatch(name) for name, _ in fields)
    fields = [(name.lower(), value.strip(b" \t")) for name, value in fields]
    assert head.headers == fields, "another header than was sent"
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    assert len(lengths) + len(codings) <= 1
    assert codings in ([], [b"chunked"])
    assert not codings or version == b"HTTP/1.1"
    if not codings:
        assert len(request.body) == (int(lengths[0]) if lengths else 0) == head.length
    assert sum(name == b"host" for name, _ in fields) in ((1,) if version == b"HTTP/1.1" else (0, 1))


def leniently(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The requests that h11 sees."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LIMIT)
    found: list[tuple[bytes, bytes, bytes]] = []
    body = b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                asked, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((bytes(asked.method), bytes(asked.target), body))
                connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            else:
                return found
    except h11.ProtocolError:
        return found
