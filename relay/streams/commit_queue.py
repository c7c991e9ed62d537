"""The appends of one node: one flush after the other while it answers, tries without end while it does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, ReadOnlyError

from relay.store.commands import NotSent
from relay.store.link import REROUTE, Command, StoreDown, pack
from relay.store.node import Node

if TYPE_CHECKING:
    from relay.streams.commit import Committer, Item
    from relay.streams.writer import LogWriter

logger = logging.getLogger(__name__)

# One flush holds Redis for as long as its scripts run: at some 2 µs a frame these keep that below a few ms.
_FLUSH_FRAMES = 1000
_FLUSH_BYTES = 1 << 20
# So many commands of other kinds go along with a flush, each of some 10 µs for Redis: when many streams begin at once,
# the events of those that run wait for a part of them only.
_FLUSH_RIDERS = 96
_RETRY_INITIAL = 0.02
_RETRY_MAX = 0.5
# The longest that a flush can take to fail while this process runs.
_ATTEMPT_MAX = 3.0
_TICK = 0.25
_TICK_MAX = 1.0


class HoldClock:
    """Calls `on_over` after so many seconds of this process's own time: what passes while it is stopped as a whole is
    not held against the store, which is asked before anything goes on without it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, counted: float, on_over: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._left = seconds - counted
        self._on_over = on_over
        self._wait()

    def cancel(self) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        self._since = self._loop.time()
        self._timer = self._loop.call_later(max(0.0, min(self._left, _TICK)), self._tick)

    def _tick(self) -> None:
        self._left -= min(self._loop.time() - self._since, _TICK_MAX)
        if self._left <= 0:
            self._on_over()
        else:
            self._wait()


class CommitQueue:
    """The appends of one node. While it answers, no task stands between its reply and the next flush; `_recover` is the
    task that takes over when it does not."""

    def __init__(self, committer: Committer, node: Node) -> None:
        self._committer = committer
        self._node = node
        self._metrics = committer.metrics
        self._topology = committer.topology
        self._waiting: list[LogWriter] = []
        self._in_flight: list[Item] = []
        self._riders: list[tuple[bytes, asyncio.Future[Any]]] = []  # commands that go along with the next flush
        self._riding: list[asyncio.Future[Any]] = []  # those that are in flight
        self._frames = 0
        self._started = 0.0
        self._busy = False
        self._away = False  # for longer than `store.hold`
        self._closed = False
        self._last_warning = ""
        self._clock: HoldClock | None = None
        self._task: asyncio.Task[None] | None = None
        self._returned = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def add(self, writer: LogWriter) -> None:
        self._waiting.append(writer)
        if not self._busy:
            self._busy = True
            # Not at once: what other upstreams have sent in this same turn of the loop goes along.
            self._loop.call_soon(self._flush)
        elif self._away:
            self._loop.call_soon(self._notify_away, writer)

    def along(self, command: Command) -> asyncio.Future[Any] | None:
        """Send a command with the next flush, in front of its appends. None where none can leave now."""
        if self._task is not None or self._closed or self._node.closed or not self._node.commit.usable:
            return None
        future: asyncio.Future[Any] = self._loop.create_future()
        self._riders.append((pack(*command), future))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._flush)
        return future

    def _notify_away(self, writer: LogWriter) -> None:
        if self._away:  # it may just have answered
            self._committer.notify_store_away(writer)

    def topology_changed(self) -> None:
        if self._task is not None:
            self._hand_over()
            self._returned.set()  # or another server has the node's address
        elif self._node.closed and not self._busy:
            self._committer.forget(self._node)

    def node_returned(self) -> None:
        """It answers something: it is tried at once. Who comes now is not told that it is away, until it is again."""
        if self._task is not None:
            self._returned.set()
            if self._away:
                self._away = False
                self._clock = HoldClock(self._loop, self._committer.hold, 0.0, self._hold_over)

    async def close(self) -> None:
        self._closed = True
        self._leave_riders(StoreDown("the link was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _flush(self) -> None:
        self._in_flight, self._frames = self._take()
        if self._closed or not (self._in_flight or self._riders):
            self._busy = False
            return
        self._started = time.monotonic()  # uvloop's own clock has whole milliseconds
        pack_items = self._committer.packed
        try:
            if self._topology.sharded:
                packed, count = b"".join([pack_items([item]) for item in self._in_flight]), len(self._in_flight)
            elif self._in_flight:
                packed, count = pack_items(self._in_flight), 1
            else:
                packed, count = b"", 0
        except Exception:  # of one of them, which `_recover` finds
            logger.warning("append: a fault of the relay's own; trying each stream by itself", exc_info=True)
            self._recover_from(None)
            return
        if self._riders:
            riders = self._riders[:_FLUSH_RIDERS]
            del self._riders[:_FLUSH_RIDERS]
            packed = b"".join([*(rider for rider, _ in riders), packed])
            count += len(riders)
            self._riding = [future for _, future in riders]
        if not self._node.commit.flush(packed, count, self._answered):
            self._recover_from(None)

    def _answered(self, result: list[Any] | StoreDown) -> None:
        if self._closed:
            return
        if isinstance(result, StoreDown):
            # Some of it may have been done. An append may be repeated: the log tells what it has.
            self._recover_from(result)
            return
        if self._riding:
            result = self._tell_riders(result)
        if not self._in_flight:
            replies = []
        elif self._topology.sharded:
            replies = [reply[0] if type(reply) is list else reply for reply in result]
        elif type(result[0]) is list:
            replies = result[0]
        else:
            self._recover_from(result[0])
            return
        if replies:
            self._observe()
        left = self._settle(replies)
        if left:
            self._waiting = [*left, *self._waiting]
            self._recover_from(None)
        elif self._waiting or self._riders:
            self._loop.call_soon(self._flush)
        else:
            self._busy = False
            if self._node.closed:
                self._committer.forget(self._node)

    def _tell_riders(self, result: list[Any]) -> list[Any]:
        """Hand on the answers of what went along; those of the appends."""
        riding, self._riding = self._riding, []
        for future, reply in zip(riding, result, strict=False):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(NotSent() if isinstance(reply, NoScriptError) else reply)
                future.exception()  # whoever waits hears it; nobody need
            else:
                future.set_result(reply)
        return result[len(riding) :]

    def _leave_riders(self, error: Exception) -> None:
        """None can go along for now: what is in flight may have been done, and what waits has not left."""
        riding, self._riding = self._riding, []
        riders, self._riders = self._riders, []
        for future in (*riding, *(future for _, future in riders)):
            if not future.done():
                future.set_exception(error)
                future.exception()

    def _observe(self) -> None:
        self._metrics.append.count(time.monotonic() - self._started)
        self._metrics.append_batch.count(self._frames)

    def _settle(self, replies: list[Any]) -> list[LogWriter]:
        """Tell the writers what the log says. Those that the node itself could not serve."""
        committer = self._committer
        batch, self._in_flight = self._in_flight, []
        left: list[LogWriter] = []
        for item, reply in zip(batch, replies, strict=True):
            if type(reply) is list:
                committer.answered(item, reply)
            elif not committer.refused(item, reply, self._node):
                self._tell_refusal(item[0], str(reply))
                left.append(item[0])
        return left

    def _tell_refusal(self, writer: LogWriter, reason: str) -> None:
        """Once, and not for each stream and try: a full store would fill the disk with lines, too."""
        if self._last_warning != reason:
            self._last_warning = reason
            logger.warning("append to %s: %s; trying again until it takes this and all others", writer.stream, reason)

    # -- while the node does not answer ------------------------------------------------------------------------------

    def _recover_from(self, error: Exception | None) -> None:
        if error is not None:
            logger.info("append: %s; trying again", error)
        self._leave_riders(error if isinstance(error, StoreDown) else NotSent())
        if self._clock is None:
            lost = min(time.monotonic() - self._started, _ATTEMPT_MAX)
            self._clock = HoldClock(self._loop, self._committer.hold, lost, self._hold_over)
        self._task = self._loop.create_task(self._recover())

    def _hold_over(self) -> None:
        self._away = True
        for writer in [item[0] for item in self._in_flight] + self._waiting:
            self._committer.notify_store_away(writer)

    async def _recover(self) -> None:
        """Append until the store takes it, or it belongs elsewhere."""
        pause = _RETRY_INITIAL
        try:
            while not self._closed:
                self._waiting = [item[0] for item in self._in_flight] + self._waiting
                self._in_flight = []
                self._hand_over()
                if not self._waiting or await self._attempt():
                    break
                self._metrics.append_failures.inc()
                self._topology.refresh_soon()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._returned.wait()
                self._returned.clear()
                pause = min(pause * 2, _RETRY_MAX)
        finally:
            self._task = None
            self._last_warning = ""
            self._busy = self._away = False
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
            if self._waiting and not self._closed:
                self._busy = True
                self._loop.call_soon(self._flush)
            elif self._node.closed:
                self._committer.forget(self._node)

    async def _attempt(self) -> bool:
        """Does the node take appends again?"""
        try:
            await self._node.commit.open()  # before anything is packed that cannot be sent
            self._in_flight, self._frames = self._take()
            self._in_flight = [item for item in self._in_flight if self._can_be_written(item)]
            self._started = time.monotonic()
            replies = await self._exchange(self._in_flight)
        except StoreDown as error:
            if self._last_warning != str(error):
                self._last_warning = str(error)
                logger.warning("append: %s; trying again until it answers", error)
            return False
        self._observe()
        if any(isinstance(reply, list) for reply in replies):
            self._away = False
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            await self._node.commit.drop()  # what was a primary is none any more
        left = self._settle(replies)
        self._waiting = left + self._waiting
        return not left

    def _can_be_written(self, item: Item) -> bool:
        """Can it be written at all?"""
        try:
            self._committer.packed([item])
        except Exception as error:
            self._committer.fault(item[0], error)
            return False
        return True

    def _hand_over(self) -> None:
        """Queue elsewhere what the topology now keeps elsewhere."""
        waiting, self._waiting = self._waiting, []
        for writer in waiting:
            if self._topology.node_of(writer.keys[0]) is self._node:
                self._waiting.append(writer)
            else:
                self._committer.resubmit(writer)

    async def _exchange(self, batch: list[Item]) -> list[Any]:
        command = self._committer.command
        if not self._topology.sharded and batch:
            (reply,) = await self._node.commit.exchange([command(batch)])
            if isinstance(reply, list):
                return reply
            if isinstance(reply, REROUTE) or len(batch) == 1:
                return [reply] * len(batch)
            # One stream's fault (a key of another type, say) must not be every stream's: each by itself.
        replies = await self._node.commit.exchange([command([item]) for item in batch])
        return [reply[0] if isinstance(reply, list) else reply for reply in replies]

    def _take(self) -> tuple[list[Item], int]:
        """What goes out now, and how many frames that makes."""
        batch: list[Item] = []
        frames = size = 0
        waiting = self._waiting
        for position, writer in enumerate(waiting):
            try:
                first = sent = writer.acked
                feed = writer.feed
                last = feed.base + len(feed.frames)
                if last - first == 1:
                    size += len(feed.frames[-1])
                    frames += 1
                    sent = last
                while sent < last and (sent == first or (frames < _FLUSH_FRAMES and size < _FLUSH_BYTES)):
                    size += len(feed.frames[sent - feed.base])
                    frames += 1
                    sent += 1
                batch.append((writer, sent, sent == last and bool(writer.outcome)))
            except Exception as error:
                self._committer.fault(writer, error)
            if frames >= _FLUSH_FRAMES or size >= _FLUSH_BYTES:
                self._waiting = waiting[position + 1 :]
                return batch, frames
        self._waiting = []
        return batch, frames
