"""Whose turn it is to begin, where hundreds of requests come in one turn of the loop.

Begun together they go on together, step by step: each step of all of them is one long turn, in which no event of any
other stream passes, and the first of them is answered no sooner than the last. So a few begin in each turn, and what a
running stream's upstream has sent passes between. Promises: who comes alone does not wait; those who wait take turns
by their key, so that an owner with hundreds of requests is not in front of another's only one; those of one key begin
in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial


class Beginnings:
    """`at_once` begin in one turn of the loop, and none in the `between` turns after it while others wait: what is
    written in a turn is answered by the store in the next one, and an event passes in two."""

    def __init__(self, at_once: int = 1, between: int = 1) -> None:
        self._at_once = at_once
        self._between = between
        self._rested = 0
        self._waiting: dict[Hashable, deque[Callable[[], bool]]] = {}
        self._begun = 0
        """In this turn of the loop; meaningless where `_counting` is False."""
        self._counting = False

    async def turn(self, key: Hashable) -> None:
        """Returns when it is the turn of one with this key."""
        if not self.may_begin():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.wait(key, partial(_wake, waiter))
            await waiter

    def may_begin(self) -> bool:
        """Is it the turn of one that comes now? Then it begins."""
        if not self._counting:
            self._count(asyncio.get_running_loop(), 1)
            return True
        if self._begun < self._at_once and not self._waiting:
            self._begun += 1
            return True
        return False

    def wait(self, key: Hashable, begin: Callable[[], bool]) -> None:
        """Have `begin` called when it is the turn of one with this key; it returns False where it does so no more."""
        self._waiting.setdefault(key, deque()).append(begin)

    def _count(self, loop: asyncio.AbstractEventLoop, begun: int) -> None:
        self._counting = True
        self._begun = begun
        loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """A turn of the loop later."""
        if self._waiting and self._rested < self._between:
            self._rested += 1
            self._count(loop, self._at_once)
            return
        begun = self._rested = 0
        try:
            while begun < self._at_once and self._waiting:
                begun += self._let_one_begin()
        finally:  # one's fault is not another's
            if begun or self._waiting:
                self._count(loop, begun)
            else:
                self._counting = False

    def _let_one_begin(self) -> bool:
        """Of the key that has waited longest since one of its own did. False where who waited does so no more."""
        key, waiting = next(iter(self._waiting.items()))
        begin = waiting.popleft()
        del self._waiting[key]
        if waiting:
            self._waiting[key] = waiting
        return begin()


def _wake(waiter: asyncio.Future[None]) -> bool:
    if waiter.done():
        return False
    waiter.set_result(None)
    return True
