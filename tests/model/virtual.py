"""An event loop that says when nothing is left to do at the present time, and whose time then passes at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


class _Selector(selectors.SelectSelector):
    """Never waits: asks what to do instead, with the seconds that the loop would wait, or None for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.on_idle: Callable[[float | None], None] = lambda _: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self.on_idle(timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock begins at a thousand seconds: some times are compared with zero."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.on_idle = self._idle
        self._now = 1000.0
        self._waiter: asyncio.Future[float | None] | None = None
        super().__init__(selector)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._now

    def _idle(self, due: float | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.set_result(due)
        elif due is not None:
            self._now += due
        else:
            raise RuntimeError("everybody waits, and nothing will ever happen")

    async def settle(self) -> float | None:
        """Returns when nothing can go on without time passing: how long until something can, None for never."""
        waiter: asyncio.Future[float | None] = self.create_future()
        self._waiter = waiter
        return await waiter

    def skip(self, seconds: float) -> None:
        """Let time pass at once; what is due is due so much later."""
        self._now += seconds
        for timer in self._scheduled:  # type: ignore[attr-defined]
            timer._when += seconds

    async def advance(self, seconds: float) -> None:
        """Let time pass, stopping at whatever is due on the way."""
        until = self._now + seconds
        while True:
            due = await self.settle()
            if due is None or self._now + due > until:
                break
            self._now += due
        self._now = until
        await self.settle()


@contextmanager
def virtual_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualLoop]:
    """A loop in whose time `time.monotonic` is told, too."""
    loop = VirtualLoop()
    monkeypatch.setattr("time.monotonic", loop.time)
    try:
        yield loop
    finally:
        monkeypatch.undo()
        loop.close()
