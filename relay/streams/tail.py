"""The tail: live events of streams that other replicas produce.

The append script rings a stream's shard channel; the log itself says what is new. So nothing is believed
that was not read from the log, a lost ring costs at most one check interval, and the work per event does
not grow with the number of streams: one connection per node carries the rings of all of them, and the
reads of all that rang share one round trip.

The same checks tell a live producer that it has readers here, and seal a stream whose producer is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import redis.exceptions
from redis.asyncio.connection import AbstractConnection

from relay.protocol.errors import KeyMissing, StoreUnavailable
from relay.protocol.lifecycle import outcome
from relay.store.log import Log, Status
from relay.store.topology import Node
from relay.streams.feed import Feed

logger = logging.getLogger(__name__)

# What a tail keeps in memory of a stream; slower readers take the rest from the log.
_WINDOW_EVENTS = 1024
_WINDOW_BYTES = 1 << 20
_REDIAL = 0.25
_SILENCE = 5.0


class TailFeed(Feed):
    __slots__ = ("ringing", "stream")

    def __init__(self, stream: str, base: int) -> None:
        super().__init__(base)
        self.stream = stream
        self.ringing = False


class Tail:
    """All tails of this replica. `seal` ends a stream whose lease lapsed, `stop` a stream that runs here."""

    def __init__(
        self,
        log: Log,
        check_every: float,
        seal: Callable[[Status], Awaitable[bool]],
        stop: Callable[[str], None],
    ) -> None:
        self._log = log
        self._check_every = check_every
        self._seal = seal
        self._stop = stop
        self._stops_on = b""
        self._feeds: dict[str, TailFeed] = {}
        self._attaching: dict[str, asyncio.Future[TailFeed]] = {}
        self._bells: dict[int, _Bell] = {}
        self._rung: list[TailFeed] = []
        self._fetcher: asyncio.Task[None] | None = None
        self._checker: asyncio.Task[None] | None = None

    async def attach(self, stream: str) -> TailFeed:
        """The feed of a stream produced elsewhere; all readers here share it. Raises StoreUnavailable."""
        feed = self._feeds.get(stream)
        if feed is not None:
            return feed
        attaching = self._attaching.get(stream)
        if attaching is None:
            attaching = asyncio.ensure_future(self._attach(stream))
            self._attaching[stream] = attaching
            attaching.add_done_callback(lambda _: self._attaching.pop(stream, None))
        return await asyncio.shield(attaching)

    def listen_for_stops(self, replica: str) -> None:
        """From now on, stream ids that ring on this replica's own channel are stopped."""
        self._stops_on = self._log.names.replica(replica)
        self._bell(self._stops_on).want(self._stops_on)

    async def _attach(self, stream: str) -> TailFeed:
        # First the bell, then the look: what is appended in between is in the look, all after it rings.
        channel = self._log.names.log(stream)
        await self._bell(channel).listen(channel)
        status = await self._log.look(stream, attached=True)
        feed = TailFeed(stream, status.top if status else 0)
        if status is None:
            feed.detach()
        elif status.outcome:
            feed.finish(outcome(status.outcome))
        self._feeds[stream] = feed
        if self._checker is None:
            self._checker = asyncio.create_task(self._check_forever())
        return feed

    def release(self, feed: Feed) -> None:
        """A reader has left; with the last one the tail ends."""
        if isinstance(feed, TailFeed) and feed.readers <= 0 and self._feeds.get(feed.stream) is feed:
            del self._feeds[feed.stream]
            channel = self._log.names.log(feed.stream)
            self._bell(channel).ignore(channel)

    def _bell(self, channel: bytes) -> _Bell:
        node = self._log.topology.node_of(channel)
        bell = self._bells.get(id(node))
        if bell is None:
            bell = self._bells[id(node)] = _Bell(node, self._ring)
        return bell

    def _ring(self, channel: bytes | None, message: bytes) -> None:
        """New events of one stream, or maybe of all (None: the bell itself was out of order)."""
        if channel == self._stops_on:
            self._stop(message.decode())
            return
        if channel is None:
            for feed in self._feeds.values():
                self._fetch_soon(feed)
            return
        feed_or_none = self._feeds.get(self._log.names.stream(channel))
        if feed_or_none is not None:
            self._fetch_soon(feed_or_none)

    def _fetch_soon(self, feed: TailFeed) -> None:
        if not feed.ringing and feed.outcome is None and not feed.detached:
            feed.ringing = True
            self._rung.append(feed)
            if self._fetcher is None:
                self._fetcher = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            while self._rung:
                rung, self._rung = self._rung, []
                for feed in rung:
                    feed.ringing = False
                await asyncio.gather(*(self._fetch_one(feed) for feed in rung))
        finally:
            self._fetcher = None

    async def _fetch_one(self, feed: TailFeed) -> None:
        try:
            page = await self._log.read(feed.stream, feed.top)
        except KeyMissing:
            feed.detach()
            return
        except StoreUnavailable:
            return  # the next check asks again
        if page.gap:
            feed.detach()
            return
        if page.frames:
            feed.frames += page.frames
            self._trim(feed)
            feed.advance(feed.top + len(page.frames))
        if page.outcome:
            feed.finish(outcome(page.outcome))
        elif page.full:
            self._fetch_soon(feed)

    def _trim(self, feed: TailFeed) -> None:
        frames = feed.frames
        size = sum(map(len, frames))
        drop = 0
        while drop < feed.top - feed.base and (len(frames) - drop > _WINDOW_EVENTS or size > _WINDOW_BYTES):
            size -= len(frames[drop])
            drop += 1
        feed.forget(feed.base + drop)

    async def _check_forever(self) -> None:
        try:
            while self._feeds:
                await asyncio.sleep(self._check_every)
                await asyncio.gather(*(self._check(feed) for feed in list(self._feeds.values())))
        finally:
            self._checker = None

    async def _check(self, feed: TailFeed) -> None:
        if feed.outcome is not None or feed.detached:
            return
        try:
            status = await self._log.look(feed.stream, attached=True)
            if status is None or not status.kept:
                feed.detach()  # gone, also where a tombstone says so
                return
            if not status.outcome and status.lease_left < 0:
                await self._seal(status)
        except StoreUnavailable:
            return
        if status.top > feed.top or status.outcome or status.lease_left < 0:
            self._fetch_soon(feed)

    async def close(self) -> None:
        tasks = [t for t in (self._fetcher, self._checker) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for bell in self._bells.values():
            await bell.close()


class _Bell:
    """One subscribed connection to one node. While it is out of order it redials and rings for all."""

    def __init__(self, node: Node, ring: Callable[[bytes | None, bytes], None]) -> None:
        self._node = node
        self._ring = ring
        self._wanted: dict[bytes, asyncio.Future[None]] = {}
        self._connection: AbstractConnection | None = None
        self._changes: list[tuple[bytes, bytes]] = []
        self._task: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    def want(self, channel: bytes) -> asyncio.Future[None]:
        """Subscribe to a channel; the future is set when that is done."""
        confirmed = self._wanted.get(channel)
        if confirmed is None:
            confirmed = self._wanted[channel] = asyncio.get_running_loop().create_future()
            self._change(b"SSUBSCRIBE", channel)
        return confirmed

    async def listen(self, channel: bytes) -> None:
        """Returns when the channel is subscribed, or when that must wait for the store to come back."""
        try:
            async with asyncio.timeout(1.0):
                await asyncio.shield(self.want(channel))
        except TimeoutError:
            logger.warning("tail: no subscription yet; checks go on meanwhile")

    def ignore(self, channel: bytes) -> None:
        if self._wanted.pop(channel, None) is not None:
            self._change(b"SUNSUBSCRIBE", channel)

    def _change(self, verb: bytes, channel: bytes) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._listen_forever())
        if self._connection is not None:
            self._changes.append((verb, channel))
            if self._sender is None:
                self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._changes and self._connection is not None:
                changes, self._changes = self._changes, []
                connection = self._connection
                await connection.send_packed_command(connection.pack_commands(changes), check_health=False)
        except (OSError, redis.exceptions.RedisError):
            self._changes = []  # the listener sees it too and subscribes all anew
        finally:
            self._sender = None

    async def _listen_forever(self) -> None:
        said = ""
        while True:
            connection: AbstractConnection | None = None
            began = time.monotonic()
            try:
                connection = await self._node.dial()
                self._connection = connection
                if self._wanted:
                    commands = [(b"SSUBSCRIBE", channel) for channel in self._wanted]
                    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                    self._ring(None, b"")
                await self._listen(connection)
            except (OSError, redis.exceptions.RedisError, EOFError) as error:
                if time.monotonic() - began > _SILENCE:
                    said = ""  # it had worked
                if said != (said := f"{type(error).__name__}: {error}"):
                    logger.warning("tail: %s; dialling again until it answers", said)
            finally:
                self._connection = None
                if connection is not None:
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(_REDIAL)

    async def _listen(self, connection: AbstractConnection) -> None:
        silent = False
        while True:
            answer = await connection.read_response(disable_decoding=True, timeout=_SILENCE)
            if answer is None:
                # A connection that died without a word rings no more and says nothing either.
                if silent:
                    raise redis.exceptions.ConnectionError("the server has not answered a PING")
                silent = True
                await connection.send_packed_command(connection.pack_command("PING"), check_health=False)
                continue
            silent = False
            if answer[0] == b"pong":
                continue
            kind, channel, message = answer
            if kind == b"smessage":
                self._ring(channel, message)
            elif kind == b"ssubscribe":
                confirmed = self._wanted.get(channel)
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)
            elif kind == b"sunsubscribe":
                wanted = self._wanted.get(channel)
                if wanted is not None and wanted.done():
                    # Not asked for: the shard has given this slot away (a Cluster that reshards).
                    raise redis.exceptions.ConnectionError("the server ended a subscription")

    async def close(self) -> None:
        tasks = [t for t in (self._task, self._sender) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
