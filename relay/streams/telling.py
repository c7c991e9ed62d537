"""What a replica still tells the store when it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

_SECONDS = 1.0


async def finish(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    """Returns when these have told it, or the time for that is over; what it has not been told by then, time to live
    does."""
    telling = [task for task in tasks if task is not None]
    if telling:
        await asyncio.wait(telling, timeout=_SECONDS)
    for task in telling:
        task.cancel()
    await asyncio.gather(*telling, return_exceptions=True)
