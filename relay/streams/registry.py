"""All that lives on this replica: producers, and how a reader finds its stream, here or in the log.

Promises: a stream's owner is checked before anything is said about it; unknown and foreign streams are
answered alike; a lease is renewed well before it lapses; a generation that nobody reads is cancelled.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from relay.config import Settings
from relay.protocol import sse
from relay.protocol.apis import DIALECTS
from relay.protocol.dialect import Dialect
from relay.protocol.errors import (
    InvalidLastEventId,
    PositionUnknown,
    ResumeNotSupported,
    StoreUnavailable,
    StreamExpired,
    StreamNotFound,
    TooMany,
    Unavailable,
)
from relay.protocol.ids import EventId, is_logged, new_stream_id
from relay.protocol.lifecycle import MESSAGES, Cause, Ending, Outcome, StreamFailure
from relay.store import scripts
from relay.store.log import Log, Page, Status
from relay.streams.commit import Committer
from relay.streams.feed import Feed
from relay.streams.producer import Producer
from relay.streams.reader import Reader
from relay.streams.tail import Tail
from relay.upstream import Route

logger = logging.getLogger(__name__)

Call = Callable[[], Awaitable[httpx.Response]]
_SEAL_TRIES = 5


@dataclass(frozen=True, slots=True)
class Attached:
    """A reader's place in a stream; `reader` is None at the end of a finished one."""

    dialect: Dialect
    reader: Reader | None


class Registry:
    """One per replica. `open` and `close` frame its life."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings = settings
        self.log = log
        self.draining = False
        self.producers: dict[str, Producer] = {}
        self.readers = 0
        self._running: set[Producer] = set()
        self._owners: Counter[str] = Counter()
        self._committer = Committer(log)
        self._tail = Tail(log, settings.streams.lease / 4, self._seal_lost)
        self._secret = secrets.token_bytes(32)
        self._shared_secret = False
        self._renewer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._renewer = asyncio.create_task(self._renew_forever())
        try:
            await self._share_secret()
        except StoreUnavailable:
            logger.warning("the store cannot be reached; new streams are relayed by store.outage until it can")

    async def close(self) -> None:
        """End what still runs here with `shutdown`, and let go of the store."""
        await self._end_all(Cause.SHUTDOWN)
        if self._renewer is not None:
            self._renewer.cancel()
            await asyncio.gather(self._renewer, return_exceptions=True)
        await self._tail.close()
        await self._committer.close()
        await self.log.topology.close()

    async def drain(self, timeout: float) -> None:
        """Take no new streams, and return when those that run here have ended or the time is up."""
        self.draining = True
        running = [asyncio.ensure_future(p.done()) for p in self._running]
        if running:
            await asyncio.wait(running, timeout=timeout)

    async def _end_all(self, outcome: Outcome) -> None:
        for producer in list(self._running):
            producer.stop(outcome)
        endings = [asyncio.ensure_future(p.done()) for p in self._running]
        if endings:
            await asyncio.wait(endings, timeout=5)

    # -- owners -------------------------------------------------------------------------------------------

    async def _share_secret(self) -> None:
        if not self._shared_secret:
            self._secret = await self.log.secret(self._secret)
            self._shared_secret = True

    async def owner_of(self, credential: bytes) -> str:
        """What stands for a credential in the log: it is never stored itself. Raises StoreUnavailable."""
        await self._share_secret()
        return hmac.digest(self._secret, credential, "sha256").hex()

    async def owner_of_new(self, credential: bytes) -> str:
        """The same for a new stream, which an unreachable store need not hinder (`store.outage`)."""
        try:
            return await self.owner_of(credential)
        except StoreUnavailable:
            if self.settings.store.outage == "refuse":
                raise
            return hmac.digest(self._secret, credential, "sha256").hex()

    # -- producers ----------------------------------------------------------------------------------------

    def begin(
        self, dialect: Dialect, route: Route, *, owner: str, request_id: str, hide_usage: bool, call: Call
    ) -> Producer:
        """Start a generation. Raises TooMany, Unavailable."""
        limits = self.settings.limits
        retry = {"retry-after": "1"}
        if self.draining:
            raise Unavailable("This relay is shutting down. Try again.", code="draining", headers=retry)
        if len(self._running) >= limits.streams:
            raise Unavailable(
                "This relay holds as many streams as limits.streams allows. Try again later.", headers=retry
            )
        if self._owners[owner] >= limits.streams_per_owner:
            raise TooMany(
                "This credential holds as many streams as limits.streams_per_owner allows. "
                "Wait for one to end, or stop one.",
                headers=retry,
            )
        logged = route.upstream.buffer
        producer = Producer(
            new_stream_id(logged=logged),
            dialect=dialect,
            route=route,
            owner=owner,
            request_id=request_id,
            logged=logged,
            hide_usage=hide_usage,
            settings=self.settings.streams,
            log=self.log,
            committer=self._committer,
            call=call,
            on_made=self._made,
            on_end=self._ended,
        )
        self._running.add(producer)
        self._owners[owner] += 1
        producer.start()
        return producer

    def _made(self, producer: Producer) -> None:
        if producer.logged:
            self.producers[producer.stream] = producer

    def _ended(self, producer: Producer) -> None:
        self._running.discard(producer)
        self.producers.pop(producer.stream, None)
        self._owners[producer.owner] -= 1
        if self._owners[producer.owner] <= 0:
            del self._owners[producer.owner]

    # -- readers ------------------------------------------------------------------------------------------

    def first_reader(self, producer: Producer) -> Reader:
        """The reader of the request that began the generation."""
        return self._reader(producer.stream, 0, producer.feed, producer=producer)

    async def attach(self, position: EventId, credential: bytes, api: str | None) -> Attached:
        """A place behind `position`. `api` is the path's own, None where every API is welcome.

        Raises what the table of resume outcomes says (`relay.protocol.errors`).
        """
        stream, n = position
        if not is_logged(stream):
            raise ResumeNotSupported
        owner = await self.owner_of(credential)
        producer = self.producers.get(stream)
        if producer is not None:
            self._check(producer.owner, owner, producer.dialect.name, api)
            if n > producer.feed.top:
                raise PositionUnknown
            if producer.feed.outcome is not None and n == producer.feed.top:
                return Attached(producer.dialect, None)
            return Attached(producer.dialect, self._reader(stream, n, producer.feed, producer=producer))
        status = await self._look(stream)
        if status is None:
            raise StreamNotFound
        self._check(status.owner, owner, status.api, api)
        dialect = DIALECTS[status.api]
        if not status.kept:
            raise StreamExpired
        if n > status.top:
            raise PositionUnknown
        if status.outcome:
            if n == status.top:
                return Attached(dialect, None)
            page = await self.log.read(stream, n)
            if not page.frames:
                raise StreamExpired if not page.gap else PositionUnknown
            return Attached(dialect, self._reader(stream, n, None, page=page))
        feed = await self._tail.attach(stream)
        return Attached(dialect, self._reader(stream, n, feed))

    async def status(self, stream: str, credential: bytes) -> Status:
        """What a stream is, for its owner. Raises StreamNotFound, StreamExpired, ResumeNotSupported."""
        if not is_logged(stream):
            raise ResumeNotSupported
        owner = await self.owner_of(credential)
        status = await self._look(stream)
        if status is None:
            raise StreamNotFound
        self._check(status.owner, owner, status.api, None)
        if not status.kept:
            raise StreamExpired
        return status

    async def _look(self, stream: str) -> Status | None:
        status = await self.log.look(stream)
        if status is not None and not status.outcome and status.lease_left < 0:
            await self._seal_lost(status)
            status = await self.log.look(stream)
        return status

    @staticmethod
    def _check(owner: str, asking: str, api: str, asked: str | None) -> None:
        if not hmac.compare_digest(owner, asking):
            raise StreamNotFound
        if asked is not None and api != asked:
            raise InvalidLastEventId(
                f"Last-Event-ID names a stream of the {api} API. Resume it on {DIALECTS[api].path}, "
                "or with GET /streams/{id}."
            )

    def _reader(
        self,
        stream: str,
        n: int,
        feed: Feed | None,
        *,
        page: Page | None = None,
        producer: Producer | None = None,
    ) -> Reader:
        if feed is not None and feed.readers >= self.settings.limits.readers_per_stream:
            raise TooMany(
                "This stream has as many readers as limits.readers_per_stream allows. Close one first.",
                code="too_many_readers",
                headers={"retry-after": "1"},
            )
        self.readers += 1

        def left(_: Reader) -> None:
            self.readers -= 1
            if producer is not None:
                self._watch_over(producer)
            elif feed is not None:
                self._tail.release(feed)

        taken = producer.consumed if producer is not None else None
        return Reader(stream, n, log=self.log, feed=feed, page=page, on_taken=taken, on_close=left)

    def _watch_over(self, producer: Producer) -> None:
        """The last reader may have left: from now on the generation's abandon clock runs."""
        if producer.feed.readers == 0 and producer in self._running:
            producer.left += 1
            after = 0.0 if producer.live_only else self.settings.streams.abandon_after
            if after != float("inf"):
                self._abandon_later(producer, after)

    def _abandon_later(self, producer: Producer, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._abandon, producer, producer.left)

    def _abandon(self, producer: Producer, left: int) -> None:
        """No reader since that departure, here or on another replica: cancel the upstream call."""
        if producer.feed.readers or producer.left != left or producer not in self._running:
            return
        remaining = self.settings.streams.abandon_after - producer.unseen()
        if remaining > 0 and not producer.live_only:
            self._abandon_later(producer, remaining)
        else:
            producer.stop(Ending.ABANDONED)

    # -- leases -------------------------------------------------------------------------------------------

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.streams.lease / 3)
            renewing = [p for p in self.producers.values() if p.logged]
            if not renewing:
                continue
            try:
                answers = await self.log.renew([(p.stream, "1") for p in renewing])
            except StoreUnavailable:
                continue
            for producer, (code, unseen) in zip(renewing, answers, strict=True):
                if code == scripts.OK:
                    producer.renewed(unseen)
                else:
                    producer.taken(code, 0, 0, False)

    async def _seal_lost(self, status: Status) -> None:
        """End a stream whose lease lapsed, exactly once, in its own dialect.

        Not within a lease of the store's own return: a store that was away has kept its producers from
        renewing, and they come back with it.
        """
        if self.log.up_for(status.stream) < self.settings.streams.lease:
            return
        dialect = DIALECTS[status.api]
        top = status.top
        for _ in range(_SEAL_TRIES):
            events = dialect.error_events(
                Cause.PRODUCER_LOST,
                MESSAGES[Cause.PRODUCER_LOST],
                _last_sequence(dialect, await self.log.last_frame(status.stream)),
                f"req_{secrets.token_hex(12)}",
            )
            frames = [sse.encode(event, f"{status.stream}.{top + i}".encode()) for i, event in enumerate(events, 1)]
            code, top = await self.log.seal(status.stream, top, Cause.PRODUCER_LOST, frames)
            if code != scripts.MISMATCH:
                if code == scripts.OK:
                    logger.warning("stream %s: its producer is lost; sealed at event %d", status.stream, top)
                return


def _last_sequence(dialect: Dialect, frame: bytes) -> int | None:
    watch = dialect.watch()
    try:
        for event in sse.Parser(max(len(frame), 1)).feed(frame):
            watch.see(event)
    except StreamFailure:
        return None
    return watch.last_sequence
