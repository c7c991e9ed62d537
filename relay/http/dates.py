"""The one `Date` of an answer: its origin's where it is passed through, else now (RFC 9110, section 6.6.1). Ages, and a
`Retry-After` that is a time, count from the origin's; of two a client may take either."""

from __future__ import annotations

import functools
import time
from email.utils import formatdate

from hypercorn.protocol.events import Response


def date() -> tuple[bytes, bytes]:
    return b"date", _spelled(int(time.time()))


@functools.lru_cache(maxsize=1)
def _spelled(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def dated(answer: Response) -> Response:
    """The same with one date, the first that it has. Names are in lower case by then."""
    dates = [item for item in answer.headers if item[0] == b"date"]
    if not dates:
        answer.headers.append(date())
    elif len(dates) > 1:
        others = [item for item in answer.headers if item[0] != b"date"]
        return Response(answer.stream_id, [*others, dates[0]], answer.status_code)
    return answer
