"""When a generation that nobody reads is cancelled, or only read to its end (`after_abandon`): one clock for each,
wherever its readers are.

A reader may say how long its stream is to go on unread (`Relay-Abandon-After`); of several who have said something the
longest time counts, whoever leaves last. So nobody can cut another's short, and the store need only keep the largest:
in whatever order, and however often, the replicas say it.

The replica that produces a stream counts its own readers. Of readers elsewhere it hears when the last one of a replica
leaves (a message), and with each renewal of its lease (the log knows which replicas have readers); before anything is
cancelled the log is asked once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from relay.config import StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.protocol.outcomes import Ending
from relay.store.log import Renewed
from relay.streams.producer import Producer

# Between two times in the store's clock and this process's own.
_TOLERANCE = 0.05


@dataclass(slots=True)
class _Clock:
    """`unread_since` is the monotonic time since when no reader is known, `limit` how long that may be, `said` the
    longest that readers have asked for; `came` whether one ever was, `elsewhere` whether another replica has some now,
    `asking` whether the log is being asked, `beyond` whether nobody is expected to come back."""

    unread_since: float
    limit: float
    said: float | None = None
    beyond: bool = False
    came: bool = False
    elsewhere: bool = False
    asking: bool = False
    timer: asyncio.TimerHandle | None = None


class Abandonment:
    """`renew` renews one producer's lease and hands the answer to `renewed`; `background` runs what nobody waits
    for."""

    def __init__(
        self,
        settings: StreamSettings,
        renew: Callable[[Producer], Awaitable[None]],
        background: Callable[..., object],
    ) -> None:
        self._settings = settings
        self._renew = renew
        self._background = background
        self._clocks: dict[Producer, _Clock] = {}

    def watch(self, producer: Producer, said: float | None = None) -> None:
        """From its beginning, its first reader is here; or from the beginning of its life on this replica, where its
        readers had `said` before how long it is to go on."""
        clock = self._clocks[producer] = _Clock(time.monotonic(), self._settings.abandon_after)
        self._hear(clock, said)

    def said(self, producer: Producer) -> float | None:
        """The longest time, in seconds, for which its readers want it to go on unread."""
        clock = self._clocks.get(producer)
        return None if clock is None else clock.said

    def run_detached(self, producer: Producer) -> None:
        """It runs without a reader for a while, until its first one has come and left."""
        clock = self._clocks[producer]
        clock.limit = self._settings.detached
        clock.unread_since = time.monotonic()
        self._arm(producer, clock)

    def gone_beyond(self, producer: Producer) -> None:
        """Its session has gone on without it: it ends now, unless somebody reads it."""
        clock = self._clocks.get(producer)
        if clock is not None and not producer.feed.readers and not clock.elsewhere:
            clock.beyond = True
            self._arm(producer, clock)

    def forget(self, producer: Producer) -> None:
        """It has ended."""
        clock = self._clocks.pop(producer, None)
        if clock is not None and clock.timer is not None:
            clock.timer.cancel()

    def reader_came(self, producer: Producer, abandon_after: float | None = None) -> None:
        """A reader on this replica; `abandon_after` is what it has said, in seconds."""
        clock = self._clocks.get(producer)
        if clock is not None:
            clock.came = True
            clock.beyond = False
            self._hear(clock, abandon_after)

    def _hear(self, clock: _Clock, abandon_after: float | None) -> None:
        if abandon_after is not None and (clock.said is None or clock.said < abandon_after):
            clock.said = abandon_after
        clock.limit = self._settings.abandon_after if clock.said is None else clock.said

    def reader_left(self, producer: Producer) -> None:
        """A reader on this replica has left."""
        clock = self._clocks.get(producer)
        if clock is not None and not producer.feed.readers:
            clock.unread_since = time.monotonic()
            self._arm(producer, clock)

    def ask(self, producer: Producer) -> None:
        """The last reader of another replica has left."""
        if producer in self._clocks:
            self._background(self._renew(producer))

    def renewed(self, producer: Producer, answer: Renewed) -> None:
        """What the log knows of readers elsewhere."""
        clock = self._clocks.get(producer)
        if clock is None:
            return
        clock.elsewhere = answer.read_elsewhere
        clock.beyond = clock.beyond and not clock.elsewhere
        if answer.unseen != float("inf"):
            clock.came = True
            self._hear(clock, answer.abandon_after)
            clock.unread_since = max(clock.unread_since, time.monotonic() - answer.unseen)
        if not producer.feed.readers and not clock.asking:
            self._arm(producer, clock)

    def _arm(self, producer: Producer, clock: _Clock) -> None:
        if clock.timer is not None:
            clock.timer.cancel()
            clock.timer = None
        limit = clock.limit if producer.logged and not clock.beyond else 0.0
        if not clock.elsewhere and limit != float("inf"):
            left = clock.unread_since + limit - time.monotonic()
            clock.timer = asyncio.get_running_loop().call_later(max(left, 0.0), self._due, producer)

    def _due(self, producer: Producer) -> None:
        clock = self._clocks.get(producer)
        if clock is None or producer.feed.readers:
            return
        clock.timer = None
        if producer.logged:
            self._background(self._abandon_unless_read(producer, clock))
        else:
            self._abandon(producer)

    @staticmethod
    def _abandon(producer: Producer) -> None:
        if producer.route.upstream.after_abandon == "cancel":
            producer.stop(Ending.ABANDONED)
        elif not producer.logged:
            producer.writer.drop()

    async def _abandon_unless_read(self, producer: Producer, clock: _Clock) -> None:
        """Where the store cannot be asked, what was heard last must do."""
        clock.asking = True
        with contextlib.suppress(StoreUnavailable):
            await self._renew(producer)
        clock.asking = False
        if producer not in self._clocks or producer.feed.readers or clock.elsewhere:
            return
        if clock.beyond or time.monotonic() - clock.unread_since + _TOLERANCE >= clock.limit:
            self._abandon(producer)
        else:
            self._arm(producer, clock)
