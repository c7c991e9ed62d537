"""A feed: the part of one stream that this replica has in memory, and who waits for more of it.

A producer's feed begins at event 1 and is held whole until the stream ends (it is what repairs a store
that lost entries). The feed of a stream produced elsewhere begins where its tail began and keeps a window.

Promise: only events up to `top` are shown to readers, and `top` passes an event only when the log holds it.
"""

from __future__ import annotations

import asyncio

from relay.protocol.lifecycle import Outcome


class Feed:
    """Events `base + 1 …`: `frames[i]` is event `base + 1 + i`. `outcome` is set once the end is known.
    `detached` is set when this feed will not go on: readers take the rest from the log."""

    __slots__ = ("_waiters", "base", "detached", "frames", "outcome", "readers", "top")

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.top = base
        self.frames: list[bytes] = []
        self.outcome: Outcome | None = None
        self.detached = False
        self.readers = 0
        self._waiters: list[asyncio.Future[None]] = []

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
        waiters = self._waiters
        if waiters:
            self._waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def wait(self, waiter: asyncio.Future[None]) -> None:
        self._waiters.append(waiter)

    async def over(self) -> None:
        """Returns when nothing more comes."""
        while self.outcome is None and not self.detached:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.wait(waiter)
            await waiter

    def forget(self, upto: int) -> None:
        """Drop the events up to `upto` from memory."""
        drop = upto - self.base
        if drop > 0:
            del self.frames[:drop]
            self.base = upto
