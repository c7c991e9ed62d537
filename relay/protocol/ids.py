"""Stream ids and event ids.

A stream id is `st_` and 22 characters of `A-Za-z0-9_-` (132 random bits). An event id is
`<stream id>.<n>`, n counting from 1 without gaps; `.0` means "from the start". An end that the relay itself
tells takes no number: its last frame has the id `<stream id>.<n>e`, n the last event before it. All stay inside the
characters that a `Last-Event-ID` header may hold without causing a CORS preflight (Fetch standard,
"CORS-safelisted request-header").

The id of a stream that is not logged ends in `_u`. A resume of such a stream can be told why it cannot
work without asking a store, and the answer says nothing about whether the stream exists.
"""

from __future__ import annotations

import re
from secrets import token_urlsafe
from typing import NamedTuple

_RANDOM_CHARS = 22
_UNLOGGED = "_u"

_STREAM_ID = re.compile(r"st_[A-Za-z0-9_-]{22}(?:_u)?")
_EVENT_ID = re.compile(r"(st_[A-Za-z0-9_-]{22}(?:_u)?)\.(0|[1-9][0-9]{0,14})(e?)")


class EventId(NamedTuple):
    """A position in a stream: the last event a reader saw, or 0 for none; `end` where it saw the end after it, too."""

    stream: str
    n: int
    end: bool = False

    def __str__(self) -> str:
        return f"{self.stream}.{self.n}{'e' if self.end else ''}"


def new_stream_id(*, logged: bool = True) -> str:
    """A fresh stream id of 132 random bits (`secrets`); `logged=False` makes one that says that there is no log."""
    return f"st_{token_urlsafe(_RANDOM_CHARS)[:_RANDOM_CHARS]}{'' if logged else _UNLOGGED}"


def is_stream_id(value: str) -> bool:
    """Has this the form of a stream id? It says nothing about whether the stream exists."""
    return _STREAM_ID.fullmatch(value) is not None


def is_logged(stream_id: str) -> bool:
    """False where the id itself says that its stream has no log."""
    return len(stream_id) == 3 + _RANDOM_CHARS


def parse_event_id(value: str) -> EventId | None:
    """The position that an event id names, or None where it is not of this relay's form.

    A `Last-Event-ID` (WHATWG HTML, section 9.2.4) is whatever its sender likes, so this never raises.
    """
    match = _EVENT_ID.fullmatch(value)
    return EventId(match[1], int(match[2]), bool(match[3])) if match else None
