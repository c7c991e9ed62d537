"""Timers for what thousands of streams each have and few live to see: their limits.

Each timer of the event loop holds 540 bytes, and to set and to cancel it takes a microsecond each; one here holds 250,
and all of them share one of the loop's. They run in an empty context. Promise: what is cancelled holds nothing of its
owner's, at once.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context
from itertools import count

# Cancelled ones are thrown out once there are so many, and more than of all others.
_FEW = 64
# The loop rounds to milliseconds.
_EARLY = 0.001


class Timer:
    """To be called `when`, by the loop's clock, unless it is cancelled before."""

    __slots__ = ("_timers", "call", "when")

    def __init__(self, when: float, call: Callable[[], object], timers: Timers) -> None:
        self.when = when
        self.call: Callable[[], object] | None = call
        self._timers = timers

    def cancel(self) -> None:
        """Once or more often, whether it has been called or not."""
        if self.call is not None:
            self.call = None
            self._timers.cancelled()

    def take(self) -> Callable[[], object] | None:
        call, self.call = self.call, None
        return call


class Timers:
    """Those of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._cancelled = 0
        self._handle: asyncio.TimerHandle | None = None

    def at(self, when: float, call: Callable[[], object]) -> Timer:
        timer = Timer(when, call, self)
        heap = self._heap
        heapq.heappush(heap, (when, next(self._numbers), timer))
        if heap[0][2] is timer:
            self._arm()
        return timer

    def cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > _FEW and 2 * self._cancelled > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap:
            self._handle = self.loop.call_at(self._heap[0][0], self._due, context=Context())

    def _due(self) -> None:
        self._handle = None
        now = self.loop.time() + _EARLY
        while self._heap and self._heap[0][0] <= now:
            call = heapq.heappop(self._heap)[2].take()
            if call is None:
                self._cancelled -= 1
                continue
            try:
                call()
            except Exception as error:  # one's fault is not another's
                self.loop.call_exception_handler({"message": "a fault in a timer", "exception": error})
        if self._handle is None:
            self._arm()


_latest: Timers | None = None  # a process has one loop that matters


def _of_running_loop() -> Timers:
    global _latest
    loop = asyncio.get_running_loop()
    if _latest is None or _latest.loop is not loop:
        _latest = Timers(loop)
    return _latest


def call_at(when: float, call: Callable[[], object]) -> Timer:
    """Have it called at a time of the running loop's clock."""
    return _of_running_loop().at(when, call)


def call_later(seconds: float, call: Callable[[], object]) -> Timer:
    timers = _of_running_loop()
    return timers.at(timers.loop.time() + seconds, call)
