"""How whoever asks for a stream finds it: here or in the log, its end, and a place to read it from.

Promises: a stream's owner is checked before anything is said about it; unknown and foreign streams are answered alike;
a resume costs one look at the log; a reader that is counted is taken back, whatever goes wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from relay.auth.owners import owns
from relay.encryption import Binding, Tampered
from relay.metrics import Meter, Metrics
from relay.protocol.apis import DIALECTS, spoken
from relay.protocol.dialect import Dialect
from relay.protocol.end_mark import sent_by_relay
from relay.protocol.errors import (
    InvalidLastEventId,
    PositionUnknown,
    ResumeNotSupported,
    StoreBehind,
    StreamExpired,
    StreamNotFound,
    TooManyRequests,
    Unavailable,
)
from relay.protocol.headers import Headers
from relay.protocol.ids import EventId, is_logged
from relay.protocol.legs import Shown
from relay.protocol.outcomes import Ending
from relay.store.log import Log, Status
from relay.streams.abandonment import Abandonment
from relay.streams.feed import Feed
from relay.streams.leases import Leases
from relay.streams.producer import Producer
from relay.streams.reader import Reader
from relay.streams.tail import Tail, TailFeed
from relay.streams.takeover import Takeovers

_STOP_TRIES = 3
_STOP_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Attached:
    """A reader's place in a stream: `reader` is None at the end of a finished one, `live` is False where it has
    ended, `backlog` is how many events stand in the log after the position, `headers` those of the upstream's that
    every answer with the stream has, `joinable` whether a request that is the same may join it."""

    dialect: Dialect
    reader: Reader | None
    live: bool
    backlog: int
    headers: Headers
    joinable: bool = False


class Lookup:
    """One per replica. `producers` are those that run here, by their streams."""

    def __init__(
        self,
        replica: str,
        log: Log,
        metrics: Metrics,
        leases: Leases,
        takeovers: Takeovers,
        tail: Tail,
        abandonment: Abandonment,
        producers: dict[str, Producer],
        readers_per_stream: int,
    ) -> None:
        self.draining = False
        self._replica = replica
        self._log = log
        self._metrics = metrics
        self._leases = leases
        self._takeovers = takeovers
        self._tail = tail
        self._abandonment = abandonment
        self._producers = producers
        self._readers_per_stream = readers_per_stream
        self._readers: Counter[str] = Counter()
        self.on_came: Callable[[str], None] = lambda _: None
        """Hears of each reader who comes to a stream that is produced here, knowing its id."""
        self._of_tails: set[Reader] = set()

    def send_readers_away(self) -> None:
        """Cut the readers of streams that other replicas produce: they come back there."""
        self.draining = True
        for reader in list(self._of_tails):
            reader.hang_up()

    # -- readers ------------------------------------------------------------------------------------------

    def readers_of(self, stream: str) -> int:
        """How many readers a stream has on this replica."""
        return self._readers.get(stream, 0)

    def first_reader(self, producer: Producer, abandon_after: float | None = None) -> Reader:
        """The reader of the request that began the generation."""
        return self._local(producer, 0, abandon_after)

    async def attach(
        self,
        position: EventId,
        asking: str | None,
        api: str | None,
        *,
        joins: bool = False,
        abandon_after: float | None = None,
        shown: Shown | None = None,
    ) -> Attached:
        """A place after `position`. `asking` is the owner who asks, None with a ticket; `api` is the path's own, None
        where every API is welcome; `joins` where the client does not come back to the stream but meets it for the first
        time; `abandon_after` is for how many seconds it is to go on unread after this reader, None where that is not
        said; `shown` is what its owner has shown, with which the stream of a lost replica can be gone on with.

        Raises what the table of resume outcomes says (`relay.protocol.errors`).
        """
        stream, n, told = position
        if not is_logged(stream):
            raise ResumeNotSupported
        producer = self._own(stream, asking)
        if producer is not None and producer.logged and not producer.feed.closed:
            return self._attach_here(producer, position, api, joins, abandon_after)
        with self._tail.arriving(stream):
            status = await self._get_status(stream, asking, came=True, abandon_after=abandon_after, shown=shown)
            if not status.outcome:
                self._tail.was_announced(status)
            self._check_api(status.api, api)
            dialect = spoken(status.api, status.headers)
            if not status.kept:
                raise StreamExpired
            if not status.outcome:
                if told:
                    # The end that it was told the store has lost since: there is none that it has not been told.
                    return self._attached(dialect, None, False, 0, status)
                return await self._attach_elsewhere(status, n, abandon_after, shown)
        if told or (n == status.top and not sent_by_relay(self._confirm_end(status).outcome)):
            return self._attached(dialect, None, False, 0, status)
        if n > status.top:
            raise PositionUnknown
        meter = self._metrics.meter(status.api, status.upstream, self._metrics.models.of_another(status.model))
        reader = self._reader(stream, n, dialect, meter, None, status.binding)
        await self._check_readable(reader)
        return self._attached(dialect, reader, False, status.top - n, status)

    def _attach_here(
        self, producer: Producer, position: EventId, api: str | None, joins: bool, abandon_after: float | None
    ) -> Attached:
        """Nothing is awaited: what is read here is true until the reader has its place."""
        _, n, told = position
        self._check_api(producer.dialect.name, api)
        feed = producer.feed
        if n > producer.writer.last:
            raise PositionUnknown
        backlog = max(feed.top - n, 0)
        if told or (feed.end is not None and not backlog and not feed.end.sent_by_relay):
            return Attached(producer.dialect, None, False, 0, producer.kept_headers)
        reader = self._local(producer, n, abandon_after)
        producer.account.resumes += not joins
        self.on_came(producer.stream)
        reader.meter.replayed_events.inc(backlog)
        return Attached(producer.dialect, reader, feed.end is None, backlog, producer.kept_headers)

    async def _attach_elsewhere(
        self, status: Status, n: int, abandon_after: float | None, shown: Shown | None
    ) -> Attached:
        if self.draining:
            raise Unavailable("This relay is shutting down. Try again.", code="draining", headers={"retry-after": "1"})
        dialect = spoken(status.api, status.headers)
        meter = self._metrics.meter(status.api, status.upstream, self._metrics.models.of_another(status.model))
        feed = self._tail.enter(status, abandon_after)

        def left(reader: Reader) -> None:
            self._closed(reader)
            if shown is not None:
                feed.shown.remove(shown)
            self._tail.leave(feed)

        try:
            reader = self._reader(status.stream, n, dialect, meter, feed, status.binding, left)
            if shown is not None:
                feed.shown.append(shown)
        except TooManyRequests:
            self._tail.leave(feed)
            raise
        try:
            await asyncio.shield(feed.opened)
        except BaseException:
            reader.close()
            raise
        await self._check_readable(reader)
        if n > max(feed.top, status.top):
            reader.close()
            raise PositionUnknown if feed.closed or feed.end is not None else StoreBehind
        self._of_tails.add(reader)
        return self._attached(dialect, reader, True, max(feed.top, status.top) - n, status)

    @staticmethod
    async def _check_readable(reader: Reader) -> None:
        """Before anything is answered: where the log is to be read, can it be? Raises PositionUnknown, StoreBehind,
        StoreUnavailable."""
        try:
            page = await reader.begin()
            if page is not None and not page.frames and page.end is None:
                # Without a gap the stream lives, and its log has lost events since it was looked at.
                raise PositionUnknown if page.gap else StoreBehind
        except BaseException:
            reader.close()
            raise

    @staticmethod
    def _attached(dialect: Dialect, reader: Reader | None, live: bool, backlog: int, status: Status) -> Attached:
        if reader is not None:
            reader.meter.replayed_events.inc(backlog)
        return Attached(dialect, reader, live, backlog, status.headers, status.joinable)

    def _local(self, producer: Producer, n: int, abandon_after: float | None) -> Reader:
        feed = producer.feed
        consumed = producer.writer.consumed if not producer.logged else None
        binding = Binding(producer.owner, producer.dialect.name)
        meter = producer.account.meter
        closed = partial(self._left, producer)
        reader = self._reader(producer.stream, n, producer.dialect, meter, feed, binding, closed, consumed)
        feed.readers += 1
        producer.account.readers += 1
        self._abandonment.reader_came(producer, abandon_after)
        return reader

    def _left(self, producer: Producer, reader: Reader) -> None:
        self._closed(reader)
        producer.feed.readers -= 1
        self._abandonment.reader_left(producer)

    def _reader(
        self,
        stream: str,
        n: int,
        dialect: Dialect,
        meter: Meter,
        feed: Feed | None,
        binding: Binding,
        on_close: Callable[[Reader], None] | None = None,
        on_consumed: Callable[[int], None] | None = None,
    ) -> Reader:
        """Every reader of every stream comes through here, and is counted; `on_close` calls `_closed`, or is that.
        Raises TooManyRequests."""
        if self._readers[stream] >= self._readers_per_stream:
            raise TooManyRequests(
                "This stream has as many readers as limits.readers_per_stream allows. Close one first.",
                code="too_many_readers",
                headers={"retry-after": "1"},
            )
        self._readers[stream] += 1
        meter.readers_active.inc()

        on_close = on_close or self._closed
        return Reader(stream, n, dialect, meter, self._log, feed, binding, on_consumed=on_consumed, on_close=on_close)

    def _closed(self, reader: Reader) -> None:
        stream = reader.stream
        reader.meter.readers_active.dec()
        self._of_tails.discard(reader)
        self._readers[stream] -= 1
        if not self._readers[stream]:
            del self._readers[stream]

    # -- what a stream is ---------------------------------------------------------------------------------

    async def status(self, stream: str, asking: str | None) -> Status:
        """What a stream is, for its owner. Raises StreamNotFound, StreamExpired, PositionUnknown,
        ResumeNotSupported."""
        if not is_logged(stream):
            raise ResumeNotSupported
        status = await self._get_status(stream, asking)
        if not status.kept:
            raise StreamExpired
        return self._confirm_end(status) if status.outcome else status

    async def fate(self, stream: str) -> Status | None:
        """What has become of a stream, whoever's it is, also where its events are kept no more; None where it is not
        known. Raises PositionUnknown."""
        try:
            status = await self._get_status(stream, None)
        except StreamNotFound:
            return None
        return self._confirm_end(status) if status.outcome and status.kept else status

    def _confirm_end(self, status: Status) -> Status:
        """Nobody is told of an end, let alone that it was a whole answer's, on the word of the stream's hash alone.
        Raises PositionUnknown, EncryptionKeyMissing."""
        try:
            return self._log.confirm_end(status)
        except Tampered:
            raise PositionUnknown from None

    def _own(self, stream: str, owner: str | None) -> Producer | None:
        """The producer of a stream, if it is here and the asker's. Another's is looked for in the log, as one is that
        does not exist: so the time of the answer tells nothing."""
        producer = self._producers.get(stream)
        return producer if producer is not None and owns(owner, producer.owner) else None

    async def _get_status(
        self,
        stream: str,
        owner: str | None,
        *,
        came: bool = False,
        abandon_after: float | None = None,
        shown: Shown | None = None,
    ) -> Status:
        """Raises StreamNotFound, for what is another owner's in every way as for what does not exist."""
        read_at = self._replica if came and not self.draining else ""
        status = await self._log.get_status(
            stream, owner=owner, read_at=read_at, came=came, abandon_after=abandon_after
        )
        if status is not None and not status.outcome and status.lease_left < 0:
            await self._leases.settle(status, shown)
            status = await self._log.get_status(stream, owner=owner)
        if status is None or not owns(owner, status.owner) or status.api not in DIALECTS:
            raise StreamNotFound
        return status

    @staticmethod
    def _check_api(api: str, asked: str | None) -> None:
        if asked is not None and api != asked:
            raise InvalidLastEventId(
                f"Last-Event-ID names a stream of the {api} API. Resume it on {DIALECTS[api].path or 'its own path'}, "
                "or with GET /streams/{id}."
            )

    # -- stopping -----------------------------------------------------------------------------------------

    async def stop(self, stream: str, asking: str | None, shown: Shown | None = None) -> None:
        """End a generation for its owner, wherever it runs; no effect where it has ended. `shown` as of `attach`.

        Raises StreamNotFound, StreamExpired, ResumeNotSupported, StoreUnavailable.
        """
        producer = self._own(stream, asking)
        if producer is not None:
            await self._stop_here(producer)
            return
        if not is_logged(stream):
            raise ResumeNotSupported
        with self._tail.arriving(stream):
            status = await self._get_status(stream, asking)
            if not status.kept:
                raise StreamExpired
            if not status.outcome and status.lease_left < 0 and await self._takeovers.take(status, shown):
                if (producer := self._own(stream, asking)) is not None:
                    await self._stop_here(producer)
            elif not status.outcome:
                await self._stop_elsewhere(status)
            elif sent_by_relay(status.outcome):
                # Its producer may not know yet that others have ended the stream.
                await self._log.directory.tell(status.replica, "stop", stream)

    @staticmethod
    async def _stop_here(producer: Producer) -> None:
        producer.stop(Ending.STOPPED)
        await producer.persisted.wait(_STOP_TIMEOUT)  # it has stopped; its log is told as soon as the store answers

    async def _stop_elsewhere(self, status: Status) -> None:
        feed: TailFeed = self._tail.enter(status)
        try:
            await asyncio.shield(feed.opened)
            for _ in range(_STOP_TRIES):
                await self._log.directory.tell(feed.producer, "stop", status.stream)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_TIMEOUT):
                        await feed.over()
                        return
        finally:
            self._tail.leave(feed)
        raise Unavailable("The replica that runs this stream did not answer. Try again.", headers={"retry-after": "1"})
