"""A reader: one client's way through one stream, from its cursor to the end.

It takes events from a feed where one is in memory, from the log where not, and waits on the feed when it
has caught up. Whatever is ready goes out in one write; a reader that is slow holds nothing but its cursor.

A reader that has caught up and whose client takes what it is given needs no task for an event: its feed hands the
frames straight to `write_through`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from relay.encryption import Binding
from relay.metrics import Meter
from relay.protocol import end_mark
from relay.protocol.dialect import Dialect
from relay.protocol.end_mark import End
from relay.protocol.ids import is_logged
from relay.protocol.sse import COMMENT_BLOCK, COMMENT_LINE
from relay.store.log import Log, Page
from relay.streams.feed import Feed

logger = logging.getLogger(__name__)

# The most that one write takes from memory, frames larger than that apart.
_WRITE_BYTES = 256 * 1024


class Lost(Exception):
    """The events after the cursor cannot be had: the connection must be cut, never ended as if complete."""


class Reader:
    """`cursor` is the last event given out. `on_close` is called once, with what was taken given back."""

    def __init__(
        self,
        stream: str,
        cursor: int,
        dialect: Dialect,
        meter: Meter,
        log: Log,
        feed: Feed | None,
        binding: Binding,
        *,
        on_consumed: Callable[[int], None] | None = None,
        on_close: Callable[[Reader], None],
    ) -> None:
        self.stream = stream
        self.cursor = cursor
        self.dialect = dialect
        self.meter = meter
        self.end: End | None = None
        self.heartbeat = dialect.event_heartbeat if dialect.name == "messages" else self.comment
        """A sign of life between its frames."""
        self.cut_at_loss = False
        """Is this reader's connection to be cut where the stream was lost? Otherwise it is told so."""
        self._log = log
        self._feed = feed
        self._binding = binding
        self._on_consumed = on_consumed
        self._on_close = on_close
        self._page: Page | None = None
        self._told = False
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._nudged = False
        self.write_through: Callable[[bytes], bool] | None = None
        """Writes frames while `read` waits; answers False where the client lags, and then `read` answers b""."""
        if feed is not None:
            feed.watch(self._wake)

    @property
    def comment(self) -> bytes:
        """A comment in the form that goes with the stream's frames."""
        return COMMENT_LINE if is_logged(self.stream) else COMMENT_BLOCK

    async def begin(self) -> Page | None:
        """Read the first page, where that comes from the log. Raises StoreUnavailable."""
        if self._feed is None or self.cursor < self._feed.base:
            self._page = await self._log.read(self.stream, self.cursor, self._binding)
        return self._page

    async def read(self) -> bytes | None:
        """The frames that are ready, b"" after a nudge or where `write_through` lags, None at the end of the stream.

        Raises Lost, StoreUnavailable.
        """
        while True:
            if self._closed:
                raise Lost
            if self.end is not None:
                return await self._tell(self.end)
            feed = self._feed
            if feed is None or self.cursor < feed.base:
                frames = await self._from_log()
                if frames:
                    return frames
            elif self.cursor < feed.top:
                return self._take(feed)
            elif feed.end is not None:
                if self.cursor > feed.top:
                    raise Lost  # what was read elsewhere the log has lost since
                self.end = feed.end
            elif feed.closed:
                self._leave_feed()
            else:
                await self._wait()
                if self._nudged:
                    self._nudged = False
                    return b""

    async def _from_log(self) -> bytes:
        page, self._page = self._page, None
        if page is None:
            page = await self._log.read(self.stream, self.cursor, self._binding)
        self.cursor += len(page.frames)
        self.end = page.end
        if not page.frames and page.end is None:
            raise Lost
        return b"".join(page.frames)

    async def _tell(self, end: End) -> bytes | None:
        """The frames of an end that the relay tells, then None."""
        if self._told or not end.sent_by_relay:
            return None
        self._told = True
        if self.cut_at_loss and end.lost:
            raise Lost
        if end.closing:
            return end.closing
        last = await self._log.frame(self.stream, self.cursor, self._binding)
        tells_more = self.dialect.name in ("responses", "sse")  # its response, or its format
        first = await self._log.frame(self.stream, 1, self._binding) if tells_more else b""
        request = f"req_{secrets.token_hex(12)}"
        return end_mark.error_frames(self.dialect, end.outcome, self.stream, self.cursor, last, request, first)

    def _take(self, feed: Feed) -> bytes:
        first = self.cursor - feed.base
        last = feed.top - feed.base
        if last - first == 1:
            data = feed.frames[first]
            self.cursor += 1
        else:
            size = 0
            stop = first
            while stop < last and (stop == first or size + len(feed.frames[stop]) <= _WRITE_BYTES):
                size += len(feed.frames[stop])
                stop += 1
            data = feed.frames[first] if stop - first == 1 else b"".join(feed.frames[first:stop])
            self.cursor += stop - first
        if self._on_consumed is not None:
            self._on_consumed(self.cursor)
        return data

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        """The feed has changed."""
        waiter, feed, write_through = self._waiter, self._feed, self.write_through
        if waiter is None or waiter.done() or feed is None:
            return  # busy with what came before; it will look for itself
        if write_through is not None:
            try:
                while feed.top > self.cursor >= feed.base:
                    if not write_through(self._take(feed)):
                        self.nudge()
                        return
            except Exception:  # this connection's own: the stream and its other readers go on
                logger.exception("stream %s: a fault of the relay's own; a reader is cut", self.stream)
                self.hang_up()
                return
            if feed.end is None and not feed.closed and self.cursor >= feed.base:
                return
        waiter.set_result(None)

    def nudge(self) -> None:
        """Make a waiting `read` answer b"", for a heartbeat."""
        if self._waiter is not None and not self._waiter.done():
            self._nudged = True
            self._waiter.set_result(None)

    def hang_up(self) -> None:
        """The client is gone: a waiting `read` raises Lost."""
        self._closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _leave_feed(self) -> None:
        if self._feed is not None:
            self._feed.unwatch(self._wake)
            self._feed = None

    def close(self) -> None:
        """Give up the reader's place; call it once."""
        self._leave_feed()
        self.write_through = None
        self._on_close(self)
