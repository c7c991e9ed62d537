"""The one `Date` of an answer: its origin's where it is passed through, else now (RFC 9110, section 6.6.1). Ages, and a
`Retry-After` that is a time, count from the origin's; of two a client may take either."""

from __future__ import annotations

import functools
import time
from email.utils import formatdate

from relay.protocol.headers import Headers


def date() -> tuple[bytes, bytes]:
    return b"date", _spelled(int(time.time()))


@functools.lru_cache(maxsize=1)
def _spelled(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def dated(head: Headers) -> Headers:
    """The same with one date, the first that it has. Names are in lower case by then."""
    dates = [item for item in head if item[0] == b"date"]
    if not dates:
        return [*head, date()]
    return head if len(dates) == 1 else [*(item for item in head if item[0] != b"date"), dates[0]]
