"""One server of the store, and the connections to it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from redis.asyncio.connection import AbstractConnection

from relay.store.dialing import Address
from relay.store.link import Link

# Pages of a log in one flush: each may have 256 KiB.
_READ_BATCH = 16


class NodeWatcher(Protocol):
    """Is told what becomes of a node."""

    def reconnect(self, node: Node) -> None:
        """A connection to it was lost."""

    def refresh_soon(self) -> None:
        """It does not answer: another server may hold its keys by now."""

    def notify_returned(self, node: Node) -> None:
        """It answers again; what it holds may be less than before."""


class Node:
    """One server: a link for appends, one for pages of events and one for everything else, so that a long replay never
    stands in front of an append or a renewal. `dial` opens further connections: that of the subscriptions, or,
    `anonymous`, one that anybody could open. `returned_at` is when it was reached again after a loss, `address` who
    that was, where it is known."""

    def __init__(
        self,
        dial: Callable[..., Awaitable[AbstractConnection]],
        timeout: float,
        watcher: NodeWatcher | None = None,
        address: Address | None = None,
    ) -> None:
        self.dial = dial
        self.address = address
        self.closed = False
        self.lost = False
        self.returned_at = float("-inf")
        self.redirected_at = float("-inf")
        self._watcher = watcher
        self.commit = Link(dial, timeout, self)
        self.query = Link(dial, timeout, self)
        self.read = Link(dial, timeout, batch_limit=_READ_BATCH)

    def on_lost(self) -> None:
        if not self.closed and not self.lost:
            self.lost = True
            if self._watcher is not None:
                self._watcher.reconnect(self)

    def on_opened(self) -> None:
        if self.lost:
            self.mark_returned()

    def on_silence(self) -> None:
        if self._watcher is not None and not self.closed:
            self._watcher.refresh_soon()

    def mark_returned(self) -> None:
        """It answers again; what it holds may be less than before."""
        self.lost = False
        self.returned_at = time.monotonic()
        if self._watcher is not None:
            self._watcher.notify_returned(self)

    async def drop(self) -> None:
        """Open all connections anew: another server has the address."""
        for link in (self.commit, self.query, self.read):
            await link.drop()

    async def close(self) -> None:
        self.closed = True
        for link in (self.commit, self.query, self.read):
            await link.close()
