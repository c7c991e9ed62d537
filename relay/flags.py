"""A flag that tasks may wait for, where thousands live and few are waited for."""

from __future__ import annotations

import asyncio
from functools import partial

from relay import timers


class Flag:
    """`asyncio.Event` holds 800 bytes from its beginning; this holds a future for each who waits."""

    __slots__ = ("_waiting", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiting: tuple[asyncio.Future[None], ...] = ()

    def set(self) -> None:
        self.is_set = True
        waiting, self._waiting = self._waiting, ()
        for waiter in waiting:
            _wake(waiter)

    async def wait(self, seconds: float | None = None) -> None:
        """Returns when it is set, or after so many seconds."""
        if self.is_set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        limit = None if seconds is None else timers.call_later(seconds, partial(_wake, waiter))
        self._waiting += (waiter,)
        try:
            await waiter
        finally:
            self._waiting = tuple([other for other in self._waiting if other is not waiter])
            if limit is not None:
                limit.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
