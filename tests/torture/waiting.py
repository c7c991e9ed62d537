"""Waiting for what no event announces: another process's state, somebody else's list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_EVERY = 0.05


async def until(predicate: Callable[[], object], timeout: float) -> bool:
    """True as soon as the condition holds, False where it does not within so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        if predicate():
            return True
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_EVERY)
