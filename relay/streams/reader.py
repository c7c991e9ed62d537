"""A reader: one client's way through one stream, from its cursor to the end.

It takes events from a feed where one is in memory, from the log where not, and waits on the feed when it
has caught up. Whatever is ready goes out in one write; a reader that is slow holds nothing but its cursor.

A reader that has caught up and whose client takes what it is given needs no task for an event: its feed hands the
frames straight to `express`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relay.metrics import Meter
from relay.protocol.lifecycle import Outcome, outcome
from relay.store.log import Log, Page
from relay.streams.feed import Feed

# The most that one write takes from memory, frames larger than that apart.
_WRITE_BYTES = 256 * 1024


class Lost(Exception):
    """The events after the cursor cannot be had: the connection must be cut, never ended as if complete."""


class Reader:
    """`cursor` is the last event given out, `outcome` the stream's once `read` has answered None."""

    def __init__(
        self,
        stream: str,
        cursor: int,
        meter: Meter,
        *,
        log: Log,
        feed: Feed | None,
        page: Page | None = None,
        on_taken: Callable[[int], None] | None = None,
        on_close: Callable[[Reader], None],
    ) -> None:
        self.stream = stream
        self.cursor = cursor
        self.meter = meter
        self.outcome: Outcome | None = None
        self._log = log
        self._feed = feed
        self._page = page
        self._on_taken = on_taken
        self._on_close = on_close
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._nudged = False
        self.express: Callable[[bytes], bool] | None = None
        """Writes frames while `read` waits; answers False where the client lags, and then `read` answers b""."""
        if feed is not None:
            feed.readers += 1
            feed.watch(self._wake)

    async def read(self) -> bytes | None:
        """The frames that are ready, b"" after a nudge or where `express` lags, None at the end of the stream. Raises
        Lost."""
        while True:
            if self._closed:
                raise Lost
            feed = self._feed
            if feed is not None and self.cursor >= feed.base:
                if self.cursor < feed.top:
                    return self._take(feed)
                if feed.outcome is not None:
                    if self.cursor > feed.top:
                        raise Lost  # what was read elsewhere the log has lost since
                    self.outcome = feed.outcome
                    return None
                if not feed.detached:
                    await self._wait()
                    if self._nudged:
                        self._nudged = False
                        return b""
                    continue
                self._leave()
            page, self._page = self._page, None
            if page is None:
                page = await self._log.read(self.stream, self.cursor)
            if page.frames:
                self.cursor += len(page.frames)
                if page.outcome:
                    self._page = Page([], page.outcome, False, False)
                return b"".join(page.frames)
            if page.outcome:
                self.outcome = outcome(page.outcome)
                return None
            raise Lost

    def _take(self, feed: Feed) -> bytes:
        first = self.cursor - feed.base
        last = feed.top - feed.base
        if last - first == 1:
            data = feed.frames[first]
            self.cursor += 1
        else:
            size = 0
            stop = first
            while stop < last and size < _WRITE_BYTES:
                size += len(feed.frames[stop])
                stop += 1
            data = b"".join(feed.frames[first:stop])
            self.cursor += stop - first
        if self._on_taken is not None:
            self._on_taken(self.cursor)
        return data

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        """The feed has changed."""
        waiter, feed, express = self._waiter, self._feed, self.express
        if waiter is None or waiter.done() or feed is None:
            return  # busy with what came before; it will look for itself
        if express is not None:
            while feed.base <= self.cursor < feed.top:
                if not express(self._take(feed)):
                    self.nudge()
                    return
            if feed.outcome is None and not feed.detached:
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

    def _leave(self) -> None:
        if self._feed is not None:
            self._feed.readers -= 1
            self._feed.unwatch(self._wake)
            self._feed = None

    def close(self) -> None:
        """Give up the reader's place; call it once."""
        self._leave()
        self._on_close(self)
