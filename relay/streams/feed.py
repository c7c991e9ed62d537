"""A feed: the part of one stream that this replica has in memory, and who waits for more of it.

A producer's feed begins at event 1 and is held whole until the stream ends (it is what repairs a store
that lost entries). The feed of a stream produced elsewhere begins where its tail began and keeps a window.

Promise: only events up to `top` are shown to readers. `top` passes an event only when the log holds it, or when a
producer has waited for its log for `store.hold` and shows ahead of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relay.protocol.end_mark import End


class Feed:
    """Events `base + 1 …`: `frames[i]` is event `base + 1 + i`. `end` is set once the end is known, `closed` when this
    feed will not go on: readers take the rest from the log. `readers` are counted by who hands the feed out, before
    anything is awaited."""

    __slots__ = ("_watchers", "base", "closed", "end", "frames", "readers", "top")

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.top = base
        self.frames: list[bytes] = []
        self.end: End | None = None
        self.closed = False
        self.readers = 0
        self._watchers: tuple[Callable[[], None], ...] = ()

    def advance(self, top: int) -> None:
        """Show events up to `top`."""
        if top > self.top:
            self.top = top
            for watcher in self._watchers:
                watcher()

    def finish(self, end: End) -> None:
        self.end = end
        self.wake()

    def close(self) -> None:
        self.closed = True
        self.wake()

    @property
    def live(self) -> bool:
        """May more come?"""
        return self.end is None and not self.closed

    def wake(self) -> None:
        for watcher in self._watchers:
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call it whenever something has changed. It must not raise, watch or unwatch."""
        self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        self._watchers = tuple(other for other in self._watchers if other != watcher)

    async def over(self) -> None:
        """Returns when nothing more comes."""
        over = asyncio.Event()

        def check() -> None:
            if not self.live:
                over.set()

        check()
        self.watch(check)
        try:
            await over.wait()
        finally:
            self.unwatch(check)

    def forget(self, upto: int) -> None:
        """Drop the events up to `upto` from memory."""
        drop = upto - self.base
        if drop > 0:
            del self.frames[:drop]
            self.base = upto
