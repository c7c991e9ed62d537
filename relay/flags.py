"""A flag that tasks may wait for, where thousands live and few are waited for."""

from __future__ import annotations

import asyncio


class Flag:
    """`asyncio.Event`, which holds 800 bytes from its beginning, is made for the first who waits."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self.is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        if not self.is_set:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()
