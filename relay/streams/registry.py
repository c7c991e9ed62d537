"""All that lives on this replica: producers, and how a reader finds its stream, here or in the log.

Promises: a stream's owner is checked before anything is said about it; unknown and foreign streams are
answered alike; a lease is renewed well before it lapses; a generation that nobody reads is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import httpx

from relay.config import Settings
from relay.metrics import Meter, Metrics
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
from relay.protocol.ids import EventId, is_logged
from relay.protocol.lifecycle import Cause, Ending
from relay.store import scripts
from relay.store.log import Log, Page, Status
from relay.streams.account import Account, Request
from relay.streams.commit import Committer
from relay.streams.feed import Feed
from relay.streams.leases import Leases
from relay.streams.producer import Producer
from relay.streams.reader import Reader
from relay.streams.tail import Tail
from relay.upstream import Route

logger = logging.getLogger(__name__)

_STOP_TRIES = 3
# Ends that others write for a producer, under numbers that readers may know as events which the store then lost.
_SEALS = (Cause.PRODUCER_LOST, Cause.STORE_LOST)
_STOP_TIMEOUT = 2.0

Call = Callable[[], Awaitable[httpx.Response]]


class _ByTicket:
    """In a credential's place: a ticket for just the stream asked for was shown, and checked."""


BY_TICKET = _ByTicket()
Asking = bytes | _ByTicket


def _owns(asking: str | None, owner: str) -> bool:
    """Is it the asker's? With a ticket (None) it is."""
    return asking is None or hmac.compare_digest(asking, owner)


def response_name(owner: str, response_id: str) -> str:
    """The name under which an owner's response finds its stream."""
    return f"response:{owner}:{response_id}"


@dataclass(frozen=True, slots=True)
class Attached:
    """A reader's place in a stream: `reader` is None at the end of a finished one, `live` is False where it has
    ended, `behind` is how many events stand in the log after the position."""

    dialect: Dialect
    reader: Reader | None
    live: bool
    behind: int


class Registry:
    """One per replica. `open` and `close` frame its life."""

    def __init__(self, settings: Settings, log: Log, metrics: Metrics) -> None:
        self.settings = settings
        self.log = log
        self.metrics = metrics
        self.draining = False
        self.producers: dict[str, Producer] = {}
        self._running: set[Producer] = set()
        self._clocks: dict[Producer, asyncio.TimerHandle] = {}  # when a generation that nobody reads is looked at
        self._owners: Counter[str] = Counter()
        self._visitors: set[Reader] = set()  # readers of streams that other replicas produce
        self._background: set[asyncio.Task[None]] = set()
        self._committer = Committer(log, metrics)
        self._replica = f"{socket.gethostname()}-{secrets.token_hex(8)}"
        self._leases = Leases(log, self._replica, lambda: self.producers.values(), self._share_secret, metrics)
        self._tail = Tail(log, settings.streams.lease / 4, self._leases.seal_lost, self._told_to_stop)
        given = settings.auth.secret()
        self._secret = given or secrets.token_bytes(32)
        self._given_secret = self._shared_secret = given is not None

    async def open(self) -> None:
        self._leases.start()
        self._tail.listen_for_stops(self._replica)
        try:
            await self._share_secret()
        except StoreUnavailable:
            logger.warning("the store cannot be reached; new streams are relayed by store.outage until it can")

    async def close(self) -> None:
        """End what still runs here with `shutdown`, and let go of the store."""
        await self.end_all()
        await self._leases.close()
        if self._background:
            await asyncio.wait(self._background, timeout=2)
        await self._tail.close()
        await self._committer.close()
        await self.log.topology.close()

    async def drain(self, timeout: float) -> None:
        """Take no new streams, send the readers of other replicas' streams there, and return when the streams
        that run here have ended or the time is up."""
        self.draining = True
        self.metrics.draining.set(1)
        for reader in list(self._visitors):
            reader.hang_up()
        running = [asyncio.ensure_future(p.done()) for p in self._running]
        if running:
            await asyncio.wait(running, timeout=timeout)

    async def end_all(self) -> None:
        """End what still runs here with `shutdown`."""
        for producer in list(self._running):
            producer.stop(Cause.SHUTDOWN)
        endings = [asyncio.ensure_future(p.done()) for p in self._running]
        if endings:
            await asyncio.wait(endings, timeout=5)

    # -- owners -------------------------------------------------------------------------------------------

    async def _share_secret(self) -> None:
        """Also asked now and then: a store that came back empty gets the same secret again, so that replicas that
        start later know the owners of what runs."""
        if self._given_secret:
            return
        self._secret = await self.log.secret(self._secret)
        self._shared_secret = True

    async def know_secret(self) -> None:
        """Have the secret that the replicas share. Raises StoreUnavailable."""
        if not self._shared_secret:
            await self._share_secret()

    async def owner_of(self, credential: bytes) -> str:
        """What stands for a credential in the log: it is never stored itself. Raises StoreUnavailable."""
        await self.know_secret()
        return self.digest(credential)

    async def _asking(self, asking: Asking) -> str | None:
        """The owner who asks; None with a ticket."""
        return None if isinstance(asking, _ByTicket) else await self.owner_of(asking)

    def digest(self, *parts: bytes) -> str:
        """What stands for secrets in a name, or signs them; call `know_secret` or `owner_of` first."""
        return hmac.digest(self._secret, b"\0".join(parts), "sha256").hex()

    async def owner_of_new(self, credential: bytes) -> str:
        """The same for a new stream, which an unreachable store need not hinder (`store.outage`)."""
        try:
            return await self.owner_of(credential)
        except StoreUnavailable:
            if self.settings.store.outage == "refuse":
                raise
            return self.digest(credential)

    # -- producers ----------------------------------------------------------------------------------------

    async def check_store(self) -> None:
        """With `outage: refuse`, before anything goes upstream and is paid for, on every retry of a client anew:
        does the store take writes? Raises StoreUnavailable."""
        if self.settings.store.outage == "refuse":
            await self.log.sign(self._replica, self.settings.streams.lease)

    def check_room(self, owner: str) -> None:
        """Raises TooMany, Unavailable where this replica takes no further stream of that owner."""
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

    def begin(
        self,
        stream: str,
        dialect: Dialect,
        route: Route,
        *,
        owner: str,
        request: Request,
        hide_usage: bool,
        call: Call,
    ) -> Producer:
        """Start a generation under a fresh stream id."""
        producer = Producer(
            stream,
            dialect=dialect,
            route=route,
            owner=owner,
            account=Account(self.metrics.meter(dialect.name, route.upstream.name, route.label), request),
            logged=is_logged(stream),
            hide_usage=hide_usage,
            settings=self.settings.streams,
            log=self.log,
            replica=self._replica,
            committer=self._committer,
            call=call,
            on_made=self._made,
            on_named=self._named,
            on_orphaned=self._leases.orphan,
            on_gone=self._gone,
            on_end=self._ended,
        )
        self._running.add(producer)
        self._owners[owner] += 1
        producer.start()
        return producer

    def _made(self, producer: Producer) -> None:
        self.producers[producer.stream] = producer
        producer.account.meter.streams_active.inc()

    def _ended(self, producer: Producer) -> None:
        self._running.discard(producer)
        if (clock := self._clocks.pop(producer, None)) is not None:
            clock.cancel()  # it would keep a whole stream in memory until it is due
        if self.producers.pop(producer.stream, None) is not None:
            producer.account.meter.streams_active.dec()
            if producer.logged:
                self.later(self._close_books(producer))
            else:
                producer.account.close(0, producer.owner)
        self._owners[producer.owner] -= 1
        if self._owners[producer.owner] <= 0:
            del self._owners[producer.owner]

    async def _close_books(self, producer: Producer) -> None:
        visits = 0
        try:
            _, visits = await asyncio.gather(
                self.log.ran(self._replica, producer.stream), self.log.visits(producer.stream)
            )
        finally:
            producer.account.close(visits, producer.owner)

    def _named(self, producer: Producer, response_id: str) -> asyncio.Task[None] | None:
        if producer.logged and producer.dialect.name == "responses":
            return self.later(self.log.rename(response_name(producer.owner, response_id), producer.stream))
        return None

    def _gone(self, producer: Producer) -> None:
        self.later(self._leases.bury(producer))

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work for the store that need not succeed; where it cannot be done, time to live does it."""

        async def attempt() -> None:
            try:
                await work
            except StoreUnavailable:
                logger.debug("left undone for want of a store: %s", work)

        task = asyncio.create_task(attempt())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- readers ------------------------------------------------------------------------------------------

    def first_reader(self, producer: Producer) -> Reader:
        """The reader of the request that began the generation."""
        producer.account.readers += 1
        return self._reader(producer.stream, 0, producer.feed, producer.account.meter, producer=producer)

    async def attach(self, position: EventId, asking: Asking, api: str | None, *, joins: bool = False) -> Attached:
        """A place behind `position`. `api` is the path's own, None where every API is welcome; `joins` where the
        client does not come back to the stream but meets it for the first time.

        Raises what the table of resume outcomes says (`relay.protocol.errors`).
        """
        stream, n = position
        if not is_logged(stream):
            raise ResumeNotSupported
        owner = await self._asking(asking)
        producer = self._own(stream, owner)
        # Behind what is in memory here may stand an end that others wrote: then the log is asked.
        if producer is not None and producer.logged and n <= producer.feed.top:
            self._check_api(producer.dialect.name, api)
            behind = producer.feed.top - n
            if producer.feed.outcome is not None and not behind:
                return Attached(producer.dialect, None, False, 0)
            account = producer.account
            reader = self._reader(stream, n, producer.feed, account.meter, producer=producer)
            account.readers += 1
            account.resumes += not joins
            return self._attached(producer.dialect, reader, producer.feed.outcome is None, behind)
        status = await self._look(stream, owner)
        self._check_api(status.api, api)
        dialect = DIALECTS[status.api]
        meter = self.metrics.meter(status.api, status.upstream, status.model)
        if not status.kept:
            raise StreamExpired
        if n > status.top:
            raise PositionUnknown
        if status.outcome:
            if n == status.top and status.outcome not in _SEALS:
                return Attached(dialect, None, False, 0)
            page = await self.log.read(stream, n)
            if not page.frames:
                raise StreamExpired if not page.gap else PositionUnknown
            return self._attached(dialect, self._reader(stream, n, None, meter, page=page), False, status.top - n)
        if self.draining:
            raise Unavailable("This relay is shutting down. Try again.", code="draining", headers={"retry-after": "1"})
        feed = await self._tail.attach(stream)  # may lag behind the log, which has told its top above
        page_or_none = await self.log.read(stream, n) if n < feed.base else None
        if page_or_none is not None and not page_or_none.frames:
            raise PositionUnknown
        reader = self._reader(stream, n, feed, meter, page=page_or_none)
        self.later(self.log.visit(stream))
        return self._attached(dialect, reader, True, max(feed.top, status.top) - n)

    @staticmethod
    def _attached(dialect: Dialect, reader: Reader, live: bool, behind: int) -> Attached:
        reader.meter.replayed_events.inc(behind)
        return Attached(dialect, reader, live, behind)

    async def status(self, stream: str, asking: Asking) -> Status:
        """What a stream is, for its owner. Raises StreamNotFound, StreamExpired, ResumeNotSupported."""
        if not is_logged(stream):
            raise ResumeNotSupported
        status = await self._look(stream, await self._asking(asking))
        if not status.kept:
            raise StreamExpired
        return status

    def local(self, stream: str) -> Producer | None:
        """The producer of a stream that is, or is about to be, on this replica."""
        return self.producers.get(stream) or next((p for p in self._running if p.stream == stream), None)

    async def stop(self, stream: str, asking: Asking) -> None:
        """End a generation for its owner, wherever it runs; no effect where it has ended.

        Raises StreamNotFound, StreamExpired, ResumeNotSupported, StoreUnavailable.
        """
        producer = self._own(stream, await self._asking(asking))
        if producer is not None:
            producer.stop(Ending.STOPPED)
            await producer.sealed()
            return
        status = await self.status(stream, asking)
        if not status.outcome:
            await self._stop_elsewhere(stream, status.replica)

    async def _stop_elsewhere(self, stream: str, replica: str) -> None:
        feed = await self._tail.attach(stream)
        feed.readers += 1
        try:
            for _ in range(_STOP_TRIES):
                await self.log.tell_to_stop(replica, stream)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_TIMEOUT):
                        await feed.over()
                        return
        finally:
            feed.readers -= 1
            self._tail.release(feed)
        raise Unavailable("The replica that runs this stream did not answer. Try again.", headers={"retry-after": "1"})

    def _told_to_stop(self, stream: str) -> None:
        producer = self.producers.get(stream)
        if producer is not None:
            producer.stop(Ending.STOPPED)

    def _own(self, stream: str, owner: str | None) -> Producer | None:
        """The producer of a stream, if it is here and the asker's. Another's is looked for in the log, as one is that
        does not exist: so the time of the answer tells nothing."""
        producer = self.producers.get(stream)
        return producer if producer is not None and _owns(owner, producer.owner) else None

    async def _look(self, stream: str, owner: str | None) -> Status:
        """Raises StreamNotFound, for what is another owner's in every way as for what does not exist."""
        status = await self.log.look(stream, owner=owner)
        if status is not None and not status.outcome and status.lease_left < 0:
            await self._leases.seal_lost(status)
            status = await self.log.look(stream, owner=owner)
        if status is None or not _owns(owner, status.owner):
            raise StreamNotFound
        return status

    @staticmethod
    def _check_api(api: str, asked: str | None) -> None:
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
        meter: Meter,
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

        def left(reader: Reader) -> None:
            meter.readers_active.dec()
            self._visitors.discard(reader)
            if producer is not None:
                self._watch_over(producer)
            elif feed is not None:
                self._tail.release(feed)

        taken = producer.consumed if producer is not None else None
        reader = Reader(stream, n, meter, log=self.log, feed=feed, page=page, on_taken=taken, on_close=left)
        meter.readers_active.inc()
        if producer is None and feed is not None:
            self._visitors.add(reader)
        return reader

    def detach(self, producer: Producer) -> None:
        """It runs without a reader for a while: its abandon clock starts when its first one leaves."""
        self._abandon_later(producer, self.settings.streams.detached, self.settings.streams.detached)

    def _watch_over(self, producer: Producer) -> None:
        """The last reader may have left: from now on the generation's abandon clock runs."""
        if producer.feed.readers == 0 and producer in self._running:
            producer.left += 1
            after = 0.0 if producer.live_only else self.settings.streams.abandon_after
            self._abandon_later(producer, after, after)

    def _abandon_later(self, producer: Producer, seconds: float, unread: float) -> None:
        """After so many seconds end it, if by then nobody has read it for `unread` seconds."""
        if seconds != float("inf"):
            if (clock := self._clocks.pop(producer, None)) is not None:
                clock.cancel()  # of an earlier departure, which counts no more
            later = asyncio.get_running_loop().call_later
            self._clocks[producer] = later(seconds, self._abandon, producer, producer.left, unread)

    def _abandon(self, producer: Producer, left: int, unread: float) -> None:
        """No reader since that departure, here or on another replica: cancel the upstream call."""
        if producer.feed.readers or producer.left != left or producer not in self._running:
            return
        if producer.live_only:
            producer.stop(Ending.ABANDONED)
        else:
            self.later(self._abandon_unless_read_elsewhere(producer, left, unread))

    async def _abandon_unless_read_elsewhere(self, producer: Producer, left: int, unread: float) -> None:
        streams = self.settings.streams
        if producer.renewable:
            try:
                [(code, unseen)] = await self.log.renew([(producer.stream, producer.fence)])
                if code == scripts.OK:
                    producer.renewed(unseen)
            except StoreUnavailable:
                pass  # what was heard last must do
        if producer.feed.readers or producer.left != left or producer not in self._running:
            return
        if not left and producer.unseen() < unread - streams.lease:
            unread = streams.abandon_after  # a detached one has had its first reader, elsewhere
        # A reader elsewhere gives a sign a few times in a lease, so within one it counts as there.
        remaining = max(unread, streams.lease) - producer.unseen()
        if remaining > 0:
            self._abandon_later(producer, remaining, unread)
        else:
            producer.stop(Ending.ABANDONED)
