"""How another replica goes on with a stream whose producer's is lost: what is kept with the stream for that.

A `Leg` says how its upstream is come back to. Where that is a relay, its events are numbered as the stream's own: apart
by as much as the relay has left out or put in, which `Offsets` keeps an account of. No credential is in any of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import orjson

from relay.protocol import credentials
from relay.protocol import query as queries
from relay.protocol.headers import Headers

RELAY, RESPONSES = "relay", "responses"
LONGEST_QUERY = 2048
UNKNOWN = "-"
"""Of a place between two events of which it is not known which of them was left out."""
# Offsets change at the end of an answer, if at all. An upstream that changes them all the time is not taken over.
_MOST_PIECES = 16


@dataclass(frozen=True, slots=True)
class Shown:
    """What a reader has shown of who it is: its headers, and the query of its address."""

    headers: Headers
    query: str = ""


@dataclass(frozen=True, slots=True)
class Leg:
    """`how` is RELAY or RESPONSES, `upstream` the upstream's name, which no word beside this can change, `stream` the
    upstream relay's stream, `query` that of the request without its credentials; `choices` and `hides_usage` are those
    of the stream's watch."""

    how: str
    upstream: str
    stream: str = ""
    query: str = ""
    choices: int = 1
    hides_usage: bool = False

    def encode(self) -> bytes:
        """As `decode_leg` reads it."""
        return orjson.dumps(asdict(self))

    def query_for(self, shown: Shown | None) -> str:
        """The query of a request for the rest, with the credentials of who asks."""
        own = () if shown is None else queries.parts(shown.query)
        more = [part for _, part, name in own if credentials.is_parameter(name)]
        return "&".join(filter(None, [self.query, *more]))


def decode_leg(text: bytes) -> Leg | None:
    """None for what is none, or is of a later version's kind."""
    try:
        found: Any = orjson.loads(text)
        leg = Leg(**{each.name: found[each.name] for each in fields(Leg)})
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None
    texts, rest = (leg.how, leg.upstream, leg.stream, leg.query), (type(leg.choices), type(leg.hides_usage))
    fits = all(type(text) is str for text in texts) and rest == (int, bool)
    return leg if fits and leg.how in (RELAY, RESPONSES) else None


def position_at(note: str, top: int) -> int | None:
    """The upstream relay's number of event `top`, by what was noted last; None where that is not known."""
    if not note:
        return top
    own, _, theirs = note.partition(":")
    if not (own.isascii() and own.isdigit() and theirs.isascii() and theirs.isdigit() and len(note) < 40):
        return None
    return int(theirs) + top - int(own) if top >= int(own) else None


class Offsets:
    """Which number an upstream relay has given to each event: `own` is that of one event here, `theirs` there."""

    __slots__ = ("_known", "_pieces")

    def __init__(self, own: int = 0, theirs: int = 0) -> None:
        self._pieces = [(-1, own, theirs)]  # up to which own number the one before counts, from which on this one does
        self._known = own

    def know(self, own: int, theirs: int) -> None:
        """What came by now ends with this event."""
        _, at, there = self._pieces[-1]
        if theirs - own != there - at:
            self._pieces.append((self._known, own, theirs))
            del self._pieces[:-_MOST_PIECES]
        self._known = own

    def note(self, upto: int) -> str:
        """What the log is to note with the events up to this one: empty where it need note nothing."""
        if len(self._pieces) == 1 and self._pieces[0][1] == self._pieces[0][2]:
            return ""
        for until, own, theirs in reversed(self._pieces):
            if upto >= own:
                return f"{own}:{theirs}"
            if upto > until:
                break
        return UNKNOWN
