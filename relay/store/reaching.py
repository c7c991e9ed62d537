"""The store of relays that run elsewhere, or here in another process, for commands that only look at it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.config import Settings
from relay.store.log import Log
from relay.store.topology import connect


@asynccontextmanager
async def reach(settings: Settings) -> AsyncIterator[Log]:
    """The log of the relays that have these settings. The embedded store is one that such a relay has started."""
    url = settings.store.url
    if url == "embedded":
        url = f"unix://{(settings.store.data_dir / 'valkey.sock').absolute()}"
    log = Log(connect(url), settings.streams, settings.store)
    try:
        yield log
    finally:
        await log.topology.close()
