"""The tail: live events of streams that other replicas produce.

The append script says on the stream's shard channel that something is new; the log itself says what. So nothing is
believed that was not read from the log, a lost message costs at most one check interval, and no stream's read waits for
another's.

The same checks tell a live producer that it has readers here, and see to it that a stream whose producer is lost is
taken over, or ended.

Promises: a reader is counted in the same turn in which it is given its feed, and a feed is dropped only with its last
reader; a feed is known to the messages before it is first read, so that none is lost in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from relay.protocol.errors import EncryptionKeyMissing, StoreUnavailable
from relay.protocol.legs import Shown
from relay.store.log import Log, Status
from relay.store.pubsub import ShardSubscriptions
from relay.streams.feed import Feed

logger = logging.getLogger(__name__)

# What a tail keeps in memory of a stream; slower readers take the rest from the log.
_WINDOW_EVENTS = 1024
_WINDOW_BYTES = 1 << 20
# So long after a lease's end it is looked at again, by this process's clock.
_LAPSED = 0.02

Background = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class TailFeed(Feed):
    """`opened` is done when its channel is subscribed and the log has been read once since; `producer` is the replica
    that runs the stream; `binding` is that of its first reader, and nobody else shares it; `abandon_after` is the
    longest that a reader here has said, to be repeated to a store that may have lost it; `shown` is of each reader who
    is its owner."""

    __slots__ = ("abandon_after", "binding", "checking", "dirty", "fetching", "opened", "producer", "shown", "stream")

    def __init__(self, status: Status) -> None:
        super().__init__(status.top)
        self.stream = status.stream
        self.producer = status.replica
        self.binding = status.binding
        self.abandon_after: float | None = None
        self.shown: list[Shown] = []
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.dirty = True
        self.fetching = False
        self.checking = False


class Tail:
    """All tails of this replica. `settle` takes a stream over whose lease has lapsed, or ends it, with what a reader of
    its owner's has shown; `on_message` takes what other replicas tell this one, `background` runs what nobody waits
    for."""

    def __init__(
        self,
        log: Log,
        replica: str,
        settle: Callable[[Status, Shown | None], Awaitable[bool]],
        on_message: Callable[[str, str], None],
        background: Background,
    ) -> None:
        self._log = log
        self._replica = replica
        self._check_every = log.settings.lease / 4
        self._settle = settle
        self._on_message = on_message
        self._background = background
        self._channel = log.names.replica(replica)
        self._feeds: dict[str, TailFeed] = {}
        self._arriving: Counter[str] = Counter()
        self._to_leave: dict[str, str] = {}  # streams that the log may know of readers here, and their producers
        self._subscriptions = ShardSubscriptions(log.topology, self._on_published)
        self._checker: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """From now on, hear what other replicas tell this one."""
        self._subscriptions.want(self._channel)

    @contextmanager
    def arriving(self, stream: str) -> Iterator[None]:
        """Frames all that a request does with a stream that may be produced elsewhere: while one arrives, nobody is
        said to have left."""
        self._arriving[stream] += 1
        try:
            yield
        finally:
            self._arriving[stream] -= 1
            if not self._arriving[stream]:
                del self._arriving[stream]
                producer = self._to_leave.pop(stream, None)
                if producer is not None and stream not in self._feeds:
                    self._background(self._tell_of_leaving(stream, producer))

    def was_announced(self, status: Status) -> None:
        """The log knows of readers here, within `arriving`."""
        self.announce(status.stream, status.replica)

    def announce(self, stream: str, producer: str) -> None:
        self._to_leave[stream] = producer

    def enter(self, status: Status, abandon_after: float | None = None) -> TailFeed:
        """The feed of a live stream that is produced elsewhere, all readers here share it; one more is counted, whom
        `leave` takes back. Wait for `opened` before reading."""
        feed = self._feeds.get(status.stream)
        if feed is not None and feed.binding != status.binding:
            feed.close()  # the hash names another owner or API than it did: what is in memory is not this reader's
        if feed is None or not feed.live:  # an end that the store has lost again is none for a newcomer
            feed = self._feeds[status.stream] = TailFeed(status)
            self._background(self._open(feed))
            if self._checker is None:
                self._checker = asyncio.create_task(self._check_forever())
        feed.readers += 1
        if abandon_after is not None:
            feed.abandon_after = max(abandon_after, feed.abandon_after or 0.0)
        return feed

    def leave(self, feed: TailFeed) -> None:
        """A reader has left; with the last one the tail ends, and the stream's producer is told."""
        feed.readers -= 1
        if feed.readers == 0:
            self._drop(feed)

    def _drop(self, feed: TailFeed) -> None:
        if self._feeds.get(feed.stream) is feed:
            del self._feeds[feed.stream]
            self._subscriptions.unsubscribe(self._log.names.log(feed.stream))
            if feed.stream in self._arriving:
                self._to_leave[feed.stream] = feed.producer
            elif feed.end is None:
                self._background(self._tell_of_leaving(feed.stream, feed.producer))

    async def _tell_of_leaving(self, stream: str, producer: str) -> None:
        if stream in self._feeds:
            return  # somebody has come back
        if stream in self._arriving:
            self._to_leave[stream] = producer
            return
        # In one connection's order: a reader who comes back from here on says so after this.
        await self._log.leave(stream, self._replica)
        await self._log.directory.tell(producer, "left", stream)

    async def _open(self, feed: TailFeed) -> None:
        # First the channel, then the log: what is appended in between is in the log, all after it is said.
        feed.fetching = True
        try:
            await self._subscriptions.subscribe(self._log.names.log(feed.stream))
            feed.dirty = False
            await self._read(feed)
        except StoreUnavailable as error:
            if not feed.opened.done():
                feed.opened.set_exception(error)
                feed.opened.exception()  # whoever waits hears it; nobody need
            feed.close()
            self._drop(feed)
        finally:
            feed.fetching = False
            if not feed.opened.done():
                feed.opened.set_result(None)
        if feed.dirty:
            self._fetch_soon(feed)

    # -- what is new ------------------------------------------------------------------------------------------

    def _on_published(self, channel: bytes, message: bytes) -> None:
        """New events of one stream, or maybe so: an empty message stands for those that may have been missed."""
        if channel == self._channel:
            verb, _, stream = message.decode("utf-8", "replace").partition(" ")
            self._on_message(verb, stream)
        elif (feed := self._feeds.get(self._log.names.stream(channel))) is not None:
            self._fetch_soon(feed)

    def _fetch_soon(self, feed: TailFeed) -> None:
        if feed.live:
            feed.dirty = True
            if not feed.fetching:
                feed.fetching = True
                self._background(self._fetch(feed))

    async def _fetch(self, feed: TailFeed) -> None:
        try:
            while feed.dirty and feed.live:
                feed.dirty = False
                await self._read(feed)
        finally:
            feed.fetching = False

    async def _read(self, feed: TailFeed) -> None:
        """Take the next page. After StoreUnavailable the next check asks again."""
        try:
            page = await self._log.read(feed.stream, feed.top, feed.binding, shared=False)
        except EncryptionKeyMissing:
            feed.close()
            return
        if page.frames:
            feed.frames += page.frames
            self._trim(feed)
            feed.advance(feed.top + len(page.frames))
        if page.gap:
            # The store has lost events, and the stream has ended before them: who has seen them must be told.
            feed.close()
        elif page.end is not None:
            feed.finish(page.end)
        elif page.full:
            feed.dirty = True

    def _trim(self, feed: TailFeed) -> None:
        frames = feed.frames
        size = sum(map(len, frames))
        drop = 0
        while drop < feed.top - feed.base and (len(frames) - drop > _WINDOW_EVENTS or size > _WINDOW_BYTES):
            size -= len(frames[drop])
            drop += 1
        feed.forget(feed.base + drop)

    # -- checks -----------------------------------------------------------------------------------------------

    async def _check_forever(self) -> None:
        try:
            while self._feeds:
                await asyncio.sleep(self._check_every)
                for feed in list(self._feeds.values()):
                    self._check_soon(feed)
        finally:
            self._checker = None

    async def _check(self, feed: TailFeed) -> None:
        """One that waits for its shard holds up no other."""
        try:
            read_at = self._replica if feed.readers else ""
            status = await self._log.get_status(feed.stream, read_at=read_at, abandon_after=feed.abandon_after)
            if status is None or not status.kept:
                feed.close()  # gone, also where a tombstone says so
                return
            feed.producer = status.replica
            if not status.outcome and status.lease_left < 0:
                own = feed.shown if status.binding == feed.binding else None
                await self._settle(status, own[-1] if own else None)
            elif not status.outcome and status.lease_left < self._check_every:
                # A producer that lives has renewed it long before: it will lapse before the next check.
                asyncio.get_running_loop().call_later(status.lease_left + _LAPSED, self._check_soon, feed)
            if status.top != feed.top or status.outcome or status.lease_left < 0:
                self._fetch_soon(feed)
        finally:
            feed.checking = False

    def _check_soon(self, feed: TailFeed) -> None:
        if feed.live and not feed.checking and self._feeds.get(feed.stream) is feed:
            feed.checking = True
            self._background(self._check(feed))

    async def close(self) -> None:
        if self._checker is not None:
            self._checker.cancel()
            await asyncio.gather(self._checker, return_exceptions=True)
        await self._subscriptions.close()
