"""What the tests of the three dialects share: events from JSON, the bytes of error frames, and hostile JSON."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import strategies as st

from relay.protocol.dialect import DONE, Dialect, Watch
from relay.protocol.ends import ENDS, Act, Name, State, name_of
from relay.protocol.outcomes import Cause, Ending, Outcome, StreamFailure
from relay.protocol.sse import Event, encode

DONE_EVENT = Event(b"", DONE)
ABNORMAL: list[Outcome] = [*Cause, Ending.STOPPED, Ending.ABANDONED]

NOT_OF_THE_FORMAT = [
    b"not json",
    b"{",
    b'{"a":}',
    b'{"a":1} {"b":2}',
    b"[]",
    b'"text"',
    b"1",
    b"null",
    b"true",
    b"[done]",
    b"DONE",
    b'{"a":"\xff"}',
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"a":' + b"9" * 10_000 + b"}",
]


class Followed:
    """A watch, and what the table of its API makes of the events that it has seen."""

    def __init__(self, api: str, watch: Watch) -> None:
        self.watch = watch
        self.state = State.NOTHING
        self.cell: State | Act = State.NOTHING
        self._table = ENDS[api]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.watch, name)

    def see(self, event: Event) -> int:
        bits = self.watch.see(event)
        self.cell = self._table[self.state][name_of(bits)]
        if isinstance(self.cell, State):
            self.state = self.cell
        return bits

    def at(self, end: Name) -> State | Act:
        """What it would be if the body ended so now."""
        return self._table[self.state][end]

    def ended_at_eof(self) -> bool:
        return self.at(Name.CLEAN_END) in (Act.WHOLE, Act.CLOSE)


def event(message: object, kind: bytes = b"") -> Event:
    return Event(kind, json.dumps(message).encode())


def frames(dialect: Dialect, cause: Outcome, message: str, sequence: int | None = None) -> bytes:
    events = dialect.error_events(cause, message, sequence, "req_1")
    return b"".join(encode(e, b"st_x.%d" % n) for n, e in enumerate(events, 8))


def refused(watch: Watch | Followed, data: bytes) -> None:
    with pytest.raises(StreamFailure) as failure:
        watch.see(Event(b"", data))
    assert failure.value.cause is Cause.UPSTREAM_MALFORMED


def hostile(keys: list[str], words: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects that use a format's own names in places where they do not belong."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(words) | st.text(max_size=3)
    names = st.sampled_from(keys)
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    )
    return st.dictionaries(names, values, max_size=6)


def never_a_fault_of_its_own(watch: Watch | Followed, dialect: Dialect, message: object, kind: bytes) -> None:
    """Whatever an upstream sends is an event or a refusal, and an end can be said after it."""
    with suppress(StreamFailure):
        assert isinstance(watch.see(event(message, kind)), int)
    assert dialect.error_events(Cause.SHUTDOWN, "Over.", watch.last_sequence, "req_1")
    watch.stop_events("req_1")  # nothing where the stream is over already
