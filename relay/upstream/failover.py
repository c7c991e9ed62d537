"""Which of the upstreams that match gets a request: the first, and the next one only where nothing is paid for twice.

A request goes on after a refusal that its upstream's `next_on` names, or where no connection was had (`unreachable`):
in both cases nothing was generated, and within `wait` the same upstream may be asked again. After all else it may have
been, so whatever comes then is the answer: a connection that broke, a silence, a stream, an error in it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import get_args

from relay.config.upstreams import Refusal
from relay.protocol.errors import UpstreamUnreachable
from relay.upstream.answer_headers import AnswerHeaders
from relay.upstream.client import Response, body_of
from relay.upstream.routing import Route

logger = logging.getLogger(__name__)

REFUSALS = frozenset(get_args(Refusal))
Send = Callable[[Route], Awaitable[Response]]
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
_Answer = Response | UpstreamUnreachable


async def ask(route: Route, send: Send) -> tuple[Route, Response]:
    """The answer that counts, and whose it is: the first that is no refusal. Where all refuse it is the first refusal
    that was sent, for the later ones say nothing of the upstream that the request was meant for.

    Raises UpstreamUnreachable where none can be reached, and what else `send` raises.
    """
    kept: tuple[Route, _Answer] | None = None
    try:
        while True:
            answer = await _patiently(route, send)
            word = _word(answer)
            if word not in REFUSALS:
                return route, _sent(answer)
            if kept is None or isinstance(kept[1], UpstreamUnreachable):
                kept = route, answer
            else:
                await _close(answer)
            if word not in route.upstream.next_on or route.next is None:
                (route, answer), kept = kept, None
                return route, _sent(answer)
            logger.info("%s: %s; the request goes on to %s", route.upstream.name, word, route.next.upstream.name)
            route = route.next
    finally:
        if kept is not None:
            await _close(kept[1])


async def _patiently(route: Route, send: Send) -> _Answer:
    """An upstream's answer, after every refusal for which it wants no longer a wait than is left of its `wait`. The
    last one is also looked for again so long where it cannot be reached."""
    left = route.upstream.wait
    pause = _FIRST_PAUSE
    while True:
        began = time.monotonic()
        try:
            response = await send(route)
        except UpstreamUnreachable as error:
            left -= time.monotonic() - began
            wait = pause * random.uniform(0.5, 1.0)
            if route.next is not None or "unreachable" not in route.upstream.next_on or wait > left:
                return error
            if pause == _FIRST_PAUSE:
                logger.warning(
                    "%s cannot be reached; a request waits for it, %.0f s at most", route.upstream.name, left
                )
            left -= wait
            pause = min(2 * pause, _LONGEST_PAUSE)
            await asyncio.sleep(wait)
            continue
        seconds = retry_after(response.headers) if response.status_code in route.upstream.next_on else None
        if seconds is None or max(seconds, 1.0) > left:
            return response
        left -= max(seconds, 1.0)
        await _close(response)
        await asyncio.sleep(seconds)


def retry_after(headers: AnswerHeaders) -> float | None:
    """The seconds that `Retry-After` asks for (RFC 9110, section 10.2.3), None where it asks for none."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def _word(answer: _Answer) -> int | str:
    return "unreachable" if isinstance(answer, UpstreamUnreachable) else answer.status_code


def _sent(answer: _Answer) -> Response:
    if isinstance(answer, UpstreamUnreachable):
        raise answer
    return answer


async def _close(answer: _Answer) -> None:
    if isinstance(answer, Response):
        await body_of(answer).aclose()
