"""Leases: who lives, and the end of streams whose producer does not.

A replica renews the leases of all its streams together, gives a sign of life of its own, and sweeps: the
streams of a replica that has given none for a lease are ended by whoever looks first, exactly once. Readers
that meet such a stream end it sooner, through `seal_lost`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable

from relay.metrics import Metrics
from relay.protocol import sse
from relay.protocol.apis import DIALECTS
from relay.protocol.dialect import Dialect
from relay.protocol.errors import StoreUnavailable
from relay.protocol.lifecycle import MESSAGES, Cause, StreamFailure
from relay.store import scripts
from relay.store.log import Log, Status
from relay.streams.account import sealed
from relay.streams.producer import Producer

logger = logging.getLogger(__name__)

_SEAL_TRIES = 5


class Leases:
    """One per replica. `running` gives the producers whose leases are to be renewed."""

    def __init__(
        self,
        log: Log,
        replica: str,
        running: Callable[[], Iterable[Producer]],
        share_secret: Callable[[], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._log = log
        self._lease = log.settings.lease
        self._replica = replica
        self._running = running
        self._share_secret = share_secret
        self._metrics = metrics
        self._orphans: dict[str, Producer] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._renew_forever()), asyncio.create_task(self._sweep_forever())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def orphan(self, producer: Producer) -> None:
        """Its producer went on without the store: the stream's log is ended when the store is back."""
        self._orphans[producer.stream] = producer

    async def bury(self, producer: Producer) -> None:
        """The store has lost this stream: leave a tombstone, so that a resume is told so on every replica."""
        route = producer.route
        fields = {"api": producer.dialect.name, "owner": producer.owner, "upstream": route.upstream.name}
        fields |= {"model": route.label, "top": str(producer.acked), "end": Cause.STORE_LOST}
        await self._log.create(producer.stream, fields)

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            renewing = [p for p in self._running() if p.renewable]
            try:
                await self._share_secret()
                if renewing:
                    answers = await self._log.renew([(p.stream, p.fence) for p in renewing])
                    for producer, (code, unseen) in zip(renewing, answers, strict=True):
                        if code == scripts.OK:
                            producer.renewed(unseen)
                        else:
                            producer.taken(code, 0, 0, False)
                await self._end_orphans()
            except StoreUnavailable:
                continue

    async def _end_orphans(self) -> None:
        for stream, producer in list(self._orphans.items()):
            status = await self._log.look(stream)
            if status is None:
                await self.bury(producer)
            elif not status.outcome:
                await self._seal(status, Cause.STORE_LOST, force=True)
            del self._orphans[stream]

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self._sweep()
            except StoreUnavailable as error:
                logger.debug("sweep: %s", error)
            await asyncio.sleep(self._lease / 2)

    async def _sweep(self) -> None:
        for replica in await self._log.sign(self._replica, self._lease):
            streams = await self._log.streams_of(replica)
            for stream in streams:
                status = await self._log.look(stream)
                if status is not None and not status.outcome:
                    if status.lease_left >= 0:
                        continue
                    if not await self.seal_lost(status):
                        return
                await self._log.ran(replica, stream)
            if not streams:
                await self._log.forget(replica)

    async def seal_lost(self, status: Status) -> bool:
        """End a stream whose lease lapsed, in its own dialect. False where it is too early to say.

        Not within a lease of the store's own return: a store that was away has kept its producers from
        renewing, and they come back with it.
        """
        if self._log.up_for(status.stream) < self._lease:
            return False
        await self._seal(status, Cause.PRODUCER_LOST, force=False)
        return True

    async def _seal(self, status: Status, cause: Cause, *, force: bool) -> None:
        dialect = DIALECTS[status.api]
        top = status.top
        for _ in range(_SEAL_TRIES):
            events = dialect.error_events(
                cause,
                MESSAGES[cause],
                _last_sequence(dialect, await self._log.last_frame(status.stream)),
                f"req_{secrets.token_hex(12)}",
            )
            frames = [sse.encode(event, f"{status.stream}.{top + i}".encode()) for i, event in enumerate(events, 1)]
            code, top = await self._log.seal(status.stream, top, cause, frames, force=force)
            if code != scripts.MISMATCH:
                if code == scripts.OK and cause is Cause.PRODUCER_LOST:  # an orphan's end its producer has counted
                    meter = self._metrics.meter(status.api, status.upstream, status.model)
                    ended = await self._log.look(status.stream)
                    seconds = ended.ended - ended.born if ended is not None else 0.0
                    sealed(meter, status.stream, cause, top, seconds)
                return


def _last_sequence(dialect: Dialect, frame: bytes) -> int | None:
    watch = dialect.watch()
    try:
        for event in sse.Parser(max(len(frame), 1)).feed(frame):
            watch.see(event)
    except StreamFailure:
        return None
    return watch.last_sequence
