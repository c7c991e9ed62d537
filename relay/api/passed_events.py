"""An event stream that is passed through, whatever path it has: unbuffered, kept alive and bounded, like a relayed one.

Promises: its bytes go on as they came; a heartbeat stands only between two of its events; it lasts no longer than
`streams.max_duration`, and its upstream is silent no longer than `streams.upstream_idle_timeout`, or its connection is
cut.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence

import httpx

from relay.api.delivery import EVENT_STREAM, Delivery
from relay.api.exchange import Exchange
from relay.config import Settings
from relay.http.contract import ConnectionCut
from relay.metrics import Meter
from relay.protocol import headers as rules
from relay.protocol.headers import Headers
from relay.protocol.sse import COMMENT_BLOCK, COMMENT_LINE
from relay.streams.reader import Lost
from relay.upstream.client import Response, body_of

# The longest that tells where an event ends, and where a line with an id begins.
_TAIL = 6
_ID = re.compile(rb"[\r\n]id:")


class PassedEvents:
    """The source of a delivery: an upstream's bytes as they arrive."""

    def __init__(self, chunks: AsyncIterator[bytes], meter: Meter) -> None:
        self.meter = meter
        self.write_through: Callable[[bytes], bool] | None = None
        self._chunks = chunks
        self._next: asyncio.Future[bytes | None] | None = None
        self._wake = asyncio.Event()
        self._nudged = False
        self._gone = False
        self._tail = b"\n\n"
        self._has_ids = False

    @property
    def heartbeat(self) -> bytes:
        """A block of its own, but where some SDKs would read one as an event: after an id."""
        return COMMENT_LINE if self._has_ids else COMMENT_BLOCK

    async def read(self) -> bytes | None:
        """What has arrived, b"" after a nudge, None at the end. Raises Lost where it breaks off."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._chunk())
            self._next.add_done_callback(lambda _: self._wake.set())
        while not self._next.done():
            self._wake.clear()
            await self._wake.wait()
            if self._gone:
                raise Lost
            if self._nudged:
                self._nudged = False
                return b""
        arrived, self._next = self._next, None
        try:
            chunk = arrived.result()
        except httpx.HTTPError:
            raise Lost from None
        if chunk is not None:
            seen = self._tail + chunk
            self._has_ids = self._has_ids or _ID.search(seen) is not None
            self._tail = seen[-_TAIL:]
        return chunk

    async def _chunk(self) -> bytes | None:
        return await anext(self._chunks, None)

    def nudge(self) -> None:
        """Make a waiting `read` answer b"", where an event has just ended."""
        if self._tail.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
            self._nudged = True
            self._wake.set()

    def hang_up(self) -> None:
        self._gone = True
        self._wake.set()

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()


async def deliver(
    exchange: Exchange,
    response: Response,
    more: Sequence[str],
    meter: Meter,
    settings: Settings,
    crossing: Headers | None = None,
) -> None:
    """Answer with an upstream's event stream; `crossing` are the headers that come with it, where they are known.
    Raises ConnectionCut where it must not look complete."""
    answer = head(response.headers.raw, more) if crossing is None else of_events(crossing)
    source = PassedEvents(aiter(body_of(response)), meter)
    try:
        async with asyncio.timeout(settings.streams.max_duration):
            await Delivery(exchange, source, settings).run(answer)
    except TimeoutError:
        raise ConnectionCut from None


def head(headers: Headers, more: Sequence[str]) -> Headers:
    """Its headers: those of an answer that is passed through, and what makes proxies hand it on as it comes."""
    return of_events(rules.to_client(headers, more))


def of_events(crossing: Headers) -> Headers:
    """The headers that cross, and what makes proxies hand it on as it comes."""
    own = {name for name, _ in EVENT_STREAM} | {b"content-length"}
    return [item for item in crossing if item[0] not in own] + EVENT_STREAM
