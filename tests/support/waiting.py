"""Waiting for what another process or task brings about: a condition is asked again and again until it holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_EVERY = 0.01


def wait_until(predicate: Callable[[], object], timeout: float, what: str = "the condition") -> float:
    """Return once the predicate holds, with the seconds that it took; TimeoutError when it does not in time."""
    began = time.monotonic()
    while not predicate():
        if time.monotonic() - began >= timeout:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(_EVERY)
    return time.monotonic() - began


async def until(predicate: Callable[[], object], timeout: float, what: str = "the condition") -> float:
    """The same on an event loop, which goes on meanwhile."""
    began = time.monotonic()
    while not predicate():
        if time.monotonic() - began >= timeout:
            raise TimeoutError(f"{what}: not within {timeout} s")
        await asyncio.sleep(_EVERY)
    return time.monotonic() - began
