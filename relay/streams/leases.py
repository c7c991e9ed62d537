"""Leases: who lives, and the end of streams whose producer does not.

A replica renews the leases of all its streams, those of each server by themselves: no shard waits for another. It gives
a sign of life of its own, and sweeps: the streams of a replica that has given none for a lease are taken over or ended
by whoever looks first, exactly once. Readers that meet such a stream do it sooner, through `settle`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

from relay.metrics import Metrics
from relay.protocol.apis import DIALECTS, spoken
from relay.protocol.end_mark import outcome_from_log
from relay.protocol.errors import StoreUnavailable
from relay.protocol.legs import Shown
from relay.protocol.outcomes import Cause, Outcome
from relay.store import scripts
from relay.store.log import Log, Renewed, Status
from relay.store.node import Node
from relay.streams.account import count_forced_end
from relay.streams.chronicle import Chronicle
from relay.streams.producer import Producer

logger = logging.getLogger(__name__)

_FORCE_TRIES = 5
_SWEPT_AT_ONCE = 100


class Running(Protocol):
    """What runs on this replica, as its leases know it."""

    def producers_to_renew(self) -> Iterable[Producer]: ...

    def on_renewed(self, producer: Producer, answer: Renewed) -> None: ...

    def runs(self, stream: str) -> bool:
        """Is it produced here, or about to be?"""

    async def renew_names(self) -> None:
        """Say again what else the store knows of this replica: the deployment's secret, keys in flight. May raise
        StoreUnavailable."""


GoesOn = Callable[[Status, Shown | None], Awaitable[bool]]
"""Is a stream whose lease has lapsed not to be ended, for it is being taken over, or may be? `Shown` is of a reader of
its owner's. Raises StoreUnavailable."""


async def _never(status: Status, shown: Shown | None) -> bool:
    return False


class Leases:
    """One per replica."""

    def __init__(
        self,
        log: Log,
        replica: str,
        running: Running,
        metrics: Metrics,
        chronicle: Chronicle,
        named: Callable[[str], str] = str,
        goes_on: GoesOn = _never,
    ) -> None:
        """`named` is how the process's log names an owner; `chronicle` hears of what has ended; `goes_on` sees to it
        that streams are taken over."""
        self._named = named
        self._chronicle = chronicle
        self._goes_on = goes_on
        self._log = log
        self._lease = log.settings.lease
        self._replica = replica
        self._running = running
        self._metrics = metrics
        self._renewing: dict[Node, asyncio.Task[None]] = {}
        self._naming: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._returned = asyncio.Event()
        log.commands.on_returned.append(lambda _: self._returned.set())

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._renew_forever()), asyncio.create_task(self._sweep_forever())]

    async def close(self) -> None:
        tasks = [*self._tasks, *self._renewing.values(), *([self._naming] if self._naming else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _finish(work: Awaitable[None]) -> None:
        try:
            await work
        except StoreUnavailable as error:
            logger.debug("left to the next pass: %s", error)

    # -- renewals -----------------------------------------------------------------------------------------------

    async def _renew_forever(self) -> None:
        """Every third of a lease, and as soon as a server is back: what it has lost is missed by somebody."""
        while True:
            try:
                async with asyncio.timeout(self._lease / 3):
                    await self._returned.wait()
            except TimeoutError:
                pass
            self._returned.clear()
            if self._naming is None or self._naming.done():
                self._naming = asyncio.create_task(self._finish(self._running.renew_names()))
            renewing = {producer.stream: producer for producer in self._running.producers_to_renew()}
            for node, streams in self._log.by_node(list(renewing)).items():
                if node not in self._renewing:
                    batch = [renewing[stream] for stream in streams]
                    task = self._renewing[node] = asyncio.create_task(self._finish(self.renew(batch)))
                    task.add_done_callback(partial(self._renewed, node))

    def _renewed(self, node: Node, _: object) -> None:
        del self._renewing[node]

    async def renew(self, producers: list[Producer]) -> None:
        """Renew the leases of streams on one server, and hand on what it says of each. Raises StoreUnavailable."""
        answers = await self._log.renew([(p.stream, p.writer.fence) for p in producers], self._replica)
        for producer, answer in zip(producers, answers, strict=True):
            try:
                self._running.on_renewed(producer, answer)
            except Exception as error:
                producer.on_fault(error)

    # -- lost producers -----------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await self._finish(self._sweep())
            await asyncio.sleep(self._lease / 2)

    async def _sweep(self) -> None:
        """What lost replicas have left, and what has ended here: a store may lose an end that it has acknowledged,
        which nobody would miss any more. So a stream leaves a replica's list only when its end is a lease old."""
        directory = self._log.directory
        for replica in await directory.announce_replica(self._replica, self._lease):
            if not await self._sweep_streams(replica):
                await directory.remove_replica(replica)
        await self._sweep_streams(self._replica)

    async def _sweep_streams(self, replica: str) -> int:
        """How many streams the replica's list had."""
        directory = self._log.directory
        listed = await directory.streams_of(replica)
        streams = [stream for stream in listed if not self._running.runs(stream)]
        for first in range(0, len(streams), _SWEPT_AT_ONCE):
            some = streams[first : first + _SWEPT_AT_ONCE]
            found = dict(zip(some, await self._log.over_since(some), strict=True))
            unclear = [stream for stream, at in found.items() if at is None]
            done = [(stream, at) for stream, at in found.items() if at]
            looks = await asyncio.gather(*map(self._look, unclear), return_exceptions=True)
            done += [(stream, at) for stream, at in zip(unclear, looks, strict=True) if isinstance(at, float)]
            if done:
                await directory.remove_streams(replica, [stream for stream, _ in done])
                await self._chronicle.note_ended([(stream, at) for stream, at in done if at])
        return len(listed)

    async def _look(self, stream: str) -> float | None:
        """When it has ended, None where that is not so or not for long enough, 0.0 where it is not there. One whose
        producer is lost is taken over, or ended, now."""
        status = await self._log.get_status(stream)
        if status is None:
            return 0.0
        if not status.outcome and status.lease_left < 0:
            await self.settle(status)
        return status.ended if status.outcome and status.lease_left < -self._lease else None

    async def settle(self, status: Status, shown: Shown | None = None) -> bool:
        """Take a stream over whose lease has lapsed, or end it. False where it is not ended: it goes on, or it is too
        early to say. `shown` is of a reader of its owner's.

        Not within a lease of the store's own return: a store that was away has kept its producers from
        renewing, and they come back with it. And not where another server has taken over from the one that was asked,
        which no producer renews at any more. Raises StoreUnavailable.
        """
        if self._log.healthy_for(status.stream) < self._lease:
            return False
        await self._log.commands.confirm(self._log.names.log(status.stream))
        return not await self._goes_on(status, shown) and await self.force_end(status)

    async def force_end(self, status: Status) -> bool:
        """End it. False where its producer lives after all. Raises StoreUnavailable."""
        top = status.top
        for _ in range(_FORCE_TRIES):
            # The event at just this top: what stands behind it in the log may be gone by the time of the end.
            last = await self._log.frame(status.stream, top, status.binding)
            dialect = spoken(status.api, status.headers) if status.api in DIALECTS else None
            outcome: Outcome = Cause.PRODUCER_LOST if dialect is None else outcome_from_log(dialect, last)
            code, top = await self._log.force_end(status.stream, top, outcome.value, status.binding)
            if code != scripts.MISMATCH:
                if code == scripts.OK:
                    model = self._metrics.models.of_another(status.model)
                    meter = self._metrics.meter(status.api, status.upstream, model)
                    ended = await self._log.get_status(status.stream)
                    seconds = ended.ended - ended.born if ended is not None else 0.0
                    count_forced_end(meter, status, outcome, top, seconds, self._named(status.owner))
                    self._chronicle.note(status.stream, "ended for its producer", producer=status.replica)
                    if status.leg and outcome is Cause.PRODUCER_LOST:
                        meter.upstream_resumed("unclaimed")
                return code != scripts.ALIVE
        return False
