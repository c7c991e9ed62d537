"""The SSE codec against the standard's own algorithm, for any bytes, cut anywhere, under any bound.

The first 4 bytes of the input say where the body is cut and how large an event may be; the rest is the body.
"""

from __future__ import annotations

import re

from relay.protocol.outcomes import Cause
from relay.protocol.sse import encode
from tests.protocol.test_sse import Heard, by_the_standard, hear

# A departure from the standard: more digits than any time has are no number.
_ENDLESS_RETRY = re.compile(rb"retry: ?[0-9]{16}")


def one(data: bytes) -> None:
    steps, body = data[:3], data[4:]
    limit = 1 + (data[3] if len(data) > 3 else 0)
    chunks = cut(body, steps)
    whole = hear([body])
    assert hear(chunks) == whole
    expected = by_the_standard(body)
    if _ENDLESS_RETRY.search(body):
        expected.retry = whole.retry
    assert whole == expected

    bounded = hear([body], limit)
    # Not what an event that is refused had to say besides: nobody reads on after it.
    again = hear(chunks, limit)
    assert (again.events, again.failed) == (bounded.events, bounded.failed), "the cut decides what is too large"
    assert bounded.events == whole.events[: len(bounded.events)]
    assert all(len(event.data) <= limit for event in bounded.events)
    assert bounded.failed is Cause.EVENT_TOO_LARGE or bounded.events == whole.events

    for event in whole.events:
        for event_id in (b"st_x.1", None):
            assert hear([encode(event, event_id)]) == Heard([event], None, event_id, None)


def cut(body: bytes, steps: bytes) -> list[bytes]:
    """The body in pieces whose lengths the steps say in turn."""
    if not any(steps):
        return [body]
    pieces: list[bytes] = []
    at = turn = 0
    while at < len(body):
        length = steps[turn % len(steps)]
        pieces.append(body[at : at + length])
        at += length
        turn += 1
    return pieces
