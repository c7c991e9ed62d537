"""A feed: the part of one stream that this replica has in memory, and who waits for more of it.

A producer's feed begins at event 1 and is held whole until the stream ends (it is what repairs a store
that lost entries). The feed of a stream produced elsewhere begins where its tail began and keeps a window.

Promise: only events up to `top` are shown to readers, and `top` passes an event only when the log holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relay.protocol.lifecycle import Outcome


class Feed:
    """Events `base + 1 …`: `frames[i]` is event `base + 1 + i`. `outcome` is set once the end is known.
    `detached` is set when this feed will not go on: readers take the rest from the log."""

    __slots__ = ("_watchers", "base", "detached", "frames", "outcome", "readers", "top")

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.top = base
        self.frames: list[bytes] = []
        self.outcome: Outcome | None = None
        self.detached = False
        self.readers = 0
        self._watchers: list[Callable[[], None]] = []

    def advance(self, top: int) -> None:
        """Show events up to `top`."""
        if top > self.top:
            self.top = top
            self.wake()

    def finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.wake()

    def detach(self) -> None:
        self.detached = True
        self.wake()

    def wake(self) -> None:
        for watcher in self._watchers:
            watcher()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call it whenever something has changed. It must not raise, watch or unwatch."""
        self._watchers = [*self._watchers, watcher]

    def unwatch(self, watcher: Callable[[], None]) -> None:
        self._watchers = [other for other in self._watchers if other != watcher]

    async def over(self) -> None:
        """Returns when nothing more comes."""
        over = asyncio.Event()

        def look() -> None:
            if self.outcome is not None or self.detached:
                over.set()

        look()
        self.watch(look)
        try:
            await over.wait()
        finally:
            self.unwatch(look)

    def forget(self, upto: int) -> None:
        """Drop the events up to `upto` from memory."""
        drop = upto - self.base
        if drop > 0:
            del self.frames[:drop]
            self.base = upto
