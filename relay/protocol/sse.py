"""Server-sent events on bytes, incrementally (WHATWG HTML, "Server-sent events", section 9.2).

Promises:

* Lines end at LF, CRLF and CR and nowhere else. (`str.splitlines` also splits at U+2028, U+0085 and
  others, which JSON may hold raw.)
* The bytes of `data:` are never decoded, so UTF-8 may be cut anywhere by TCP.
* Work is linear in the bytes fed, however they are cut, and what is held is bounded: an event's bytes, field names
  and all, by `max_event_bytes`, wherever TCP cuts them.

Deliberate departures from the standard: `id:` and `retry:` of an upstream are kept on the parser and never
forwarded (event ids are the relay's own), and an event whose data is empty is dropped like a comment,
because clients of these APIs parse every data line as JSON and some upstreams use it to keep alive. What upstreams
write where an event should stand is read as one: a field `error:`, and a block that begins like a JSON or an HTML body.
An event without its blank line at the end of the body is offered (`rest`), and not discarded.

What of a field's line goes on to clients: `data:` as it is, for the API's own JSON judges it, and `event:` where its
type has no control character. Such a line is ignored, as the standard has it for an `id:` with NUL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from relay.protocol.outcomes import Cause, StreamFailure

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
MOST_LINES = 100_000
"""Of one event: each is gone through by itself, 8 MiB of them took half a second."""
_LONG = 64 * 1024
_BOM = b"\xef\xbb\xbf"

COMMENT_LINE = b": hb\n"
"""Keeps a stream alive that has ids. No blank line: openai-python takes one for an event once it has seen an id."""
COMMENT_BLOCK = b": hb\n\n"
"""Keeps one alive that has none. Parsers written by hand skip a block that does not begin with `data: `, and with it an
event that shares the block."""


class Event(NamedTuple):
    """One event (WHATWG HTML, section 9.2.6): `type` is the `event:` field, empty where there is none, `data` the lines
    of `data:` joined by LF.
    """

    type: bytes
    data: bytes


class Parser:
    """Turns the bytes of one response body into events (WHATWG HTML, sections 9.2.5 and 9.2.6).

    `last_event_id` and `retry` (milliseconds) hold what the upstream said last, or None.
    """

    def __init__(self, max_event_bytes: int, *, verbatim: bool = False) -> None:
        """`verbatim`: nothing but fields of the standard is an event, and one without data is one, too."""
        self._verbatim = verbatim
        self.last_event_id: bytes | None = None
        self.retry: int | None = None
        self._max = max_event_bytes
        self._at_start = True
        self._after_cr = False
        self._held: list[bytes] = []
        self._held_bytes = 0

    @property
    def incomplete(self) -> bool:
        """True where bytes of an event without its blank line are held: at the body's end they are discarded."""
        return any(self._held)

    @property
    def idle(self) -> bool:
        """True where the next byte begins an event."""
        return not (self._held or self._after_cr or self._at_start)

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take the next bytes and yield the events they complete; exhaust it before the next call.

        Raises StreamFailure (event_too_large) where an event outgrows the bound, after the events before it.
        """
        if self._at_start:
            chunk = b"".join(self._held) + chunk
            if len(chunk) < 3 and _BOM.startswith(chunk):
                self._held = [chunk]
                return
            self._held = []
            self._at_start = False
            chunk = chunk.removeprefix(_BOM)
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk[-1:] == b"\r"
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

        held = self._held
        seam = held and chunk[:1] == b"\n" and held[-1][-1:] == b"\n"
        # To look for two bytes takes 30 times as long as for one: of 3 MB, 2.3 ms.
        if not seam and (b"\n" not in chunk or b"\n\n" not in chunk):
            self._hold(chunk)
            return
        blocks: list[bytes] = []
        if held:  # the first event ends here, and nowhere before
            if seam:
                held[-1], chunk = held[-1][:-1], chunk[1:]
            else:
                last, _, chunk = chunk.partition(b"\n\n")
                held.append(last)
            blocks.append(b"".join(held))
            self._held = []
            self._held_bytes = 0
        *more, rest = chunk.split(b"\n\n")
        blocks += more
        for block in blocks:
            if block[:6] == b"data: " and b"\n" not in block:
                event: Event | None = Event(b"", block[6:])
            else:
                event = self._parse(block)
            if len(block) > self._max:
                raise self._too_large()
            if event is not None and (event.data or self._verbatim):
                yield event
        if rest:
            self._hold(rest)

    def rest(self) -> Event | None:
        """At the end of the body: what is held of an event without its blank line, its last line perhaps cut."""
        block, self._held, self._held_bytes = b"".join(self._held), [], 0
        event = self._parse(block.strip(b"\n"))
        return event if event is not None and (event.data or self._verbatim) else None

    @property
    def held(self) -> bytes:
        """The bytes of the event that is not complete."""
        return b"".join(self._held)

    def _hold(self, chunk: bytes) -> None:
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        if self._held_bytes > self._max + 1:  # the line end before a blank line is none of the event's bytes
            raise self._too_large()

    def _too_large(self) -> StreamFailure:
        return StreamFailure(
            Cause.EVENT_TOO_LARGE,
            f"An event of the upstream is larger than streams.max_event_bytes ({self._max} bytes).",
        )

    def _parse(self, block: bytes) -> Event | None:
        if block[:7] == b"event: ":  # as nearly all are that have a type
            first, _, rest = block.partition(b"\n")
            if rest[:6] == b"data: " and b"\n" not in rest and _CONTROL.search(first) is None:
                return Event(first[7:], rest[6:])
        if len(block) > _LONG and block.count(b"\n") > MOST_LINES:
            raise StreamFailure(Cause.EVENT_TOO_LARGE, f"An event of the upstream has more than {MOST_LINES:,} lines.")
        kind = b""
        data: list[bytes] = []
        error = b""
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            if value[:1] == b" ":
                value = value[1:]
            if name == b"data":
                data.append(value)
            elif name == b"event" and _CONTROL.search(value) is None:
                kind = value
            elif name == b"id" and _CONTROL.search(value) is None:
                self.last_event_id = value
            elif name == b"retry" and value.isdigit() and len(value) < 16:  # int() refuses thousands of digits
                self.retry = int(value)
            elif name == b"error":
                error = value
        if data or (self._verbatim and kind):
            return Event(kind, b"\n".join(data))
        if self._verbatim:
            return None
        if error:
            return Event(b"error", error)
        return Event(kind, block.strip()) if block.lstrip()[:1] in (b"{", b"[", b"<") else None


def encode(event: Event, event_id: bytes | None) -> bytes:
    """The frame of an event (WHATWG HTML, section 9.2.5): its id as the first line, its blank line last.

    Args:
        event: its data may hold LF, but no CR.
        event_id: None for an event of a stream without a log.
    """
    data = event.data if b"\n" not in event.data else event.data.replace(b"\n", b"\ndata: ")
    block = b"event: %b\ndata: %b\n\n" % (event.type, data) if event.type else b"data: %b\n\n" % data
    return block if event_id is None else b"id: %b\n%b" % (event_id, block)
