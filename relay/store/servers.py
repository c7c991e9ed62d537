"""What every topology does about a lost server: ask who serves what, and dial until it answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from redis.exceptions import AskError

from relay.store.dialing import FAULTS
from relay.store.link import StoreDown
from relay.store.node import Node

logger = logging.getLogger(__name__)

ASK_TIMEOUT = 1.0
# How long after the first answer the others are waited for: they may know better, and one of them may be silent.
GRACE = 0.1
_REDIAL_INITIAL = 0.02
_REDIAL_MAX = 0.5
# Not sooner than so long after the last answer is the same question asked unasked.
_FRESH = 0.1


class Servers:
    """The base of a single server, of Sentinel and of Cluster."""

    sharded = False

    def __init__(self, timeout: float) -> None:
        self.on_change: list[Callable[[], None]] = []
        self.on_returned: list[Callable[[Node], None]] = []
        self._timeout = timeout
        self._refreshing: asyncio.Task[None] | None = None
        self.refreshed_at = float("-inf")
        self._reconnecting: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def nodes(self) -> list[Node]:
        raise NotImplementedError

    async def _refresh(self) -> None:
        raise NotImplementedError

    def follow(self, redirection: AskError, asked: Node) -> Node:
        return asked

    async def refresh(self) -> None:
        self.refresh_soon(at_once=True)
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)

    def refresh_soon(self, *, at_once: bool = False) -> None:
        fresh = time.monotonic() - self.refreshed_at < _FRESH
        if self._refreshing is None and not self._closed and (at_once or not fresh):
            self._refreshing = asyncio.create_task(self._run_refresh())
            self._refreshing.add_done_callback(self._refresh_done)

    async def _run_refresh(self) -> None:
        try:
            await self._refresh()
        except TimeoutError:
            raise StoreDown(f"no answer in {ASK_TIMEOUT:g} s") from None
        except FAULTS as error:
            raise StoreDown(f"{type(error).__name__}: {error}") from None
        self.refreshed_at = time.monotonic()

    def _refresh_done(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled() and task.exception() is not None:
            logger.debug("store: %s", task.exception())

    def reconnect(self, node: Node) -> None:
        """A connection to it was lost: have it opened again as soon as it answers, whether or not anything is wanted of
        it just now, so that those who wait for its return hear of it."""
        if not self._closed:
            task = asyncio.create_task(self._reconnect(node))
            self._reconnecting.add(task)
            task.add_done_callback(self._reconnecting.discard)

    async def _reconnect(self, node: Node) -> None:
        pause = _REDIAL_INITIAL
        while node.lost and not node.closed:
            answer = node.query.call("PING")
            while not answer.done():  # which takes long where nobody answers, not even that nobody is there
                self.refresh_soon()
                await asyncio.wait([answer], timeout=_REDIAL_MAX)
            if answer.cancelled() or answer.exception() is not None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _REDIAL_MAX)
            elif node.lost:
                node.mark_returned()

    def notify_returned(self, node: Node) -> None:
        for callback in list(self.on_returned):
            callback(node)

    def _notify_change(self) -> None:
        for callback in list(self.on_change):
            callback()

    def _close_later(self, node: Node) -> None:
        node.closed = True
        task = asyncio.create_task(node.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self._closed = True
        tasks = [*self._reconnecting, *([self._refreshing] if self._refreshing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        for node in self.nodes():
            await node.close()
