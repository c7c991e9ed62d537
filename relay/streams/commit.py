"""Group commit: append before emit, all streams of a replica together.

One flush is in flight per node; whatever arrives meanwhile, of every stream, is the next flush. An event
that arrives while none is in flight leaves at once: there is no timer. The append script is told the log's
expected top, so a lost reply is told apart from a lost write and a repeated append cannot make a hole or a
double; the producer's memory then brings the log up to date from whatever top the server names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Protocol

from relay.metrics import Metrics
from relay.store import scripts
from relay.store.link import REROUTE, Command, StoreDown, pack
from relay.store.log import Log, millis
from relay.store.topology import Node
from relay.streams.feed import Feed

logger = logging.getLogger(__name__)

# One flush holds Redis for as long as its scripts run: at some 2 µs a frame these keep that below a few ms.
_FLUSH_FRAMES = 1000
_FLUSH_BYTES = 1 << 20
_RETRY_FIRST = 0.02
_RETRY_MOST = 0.5
# The longest that one attempt and the pause before it can take while this process runs.
_ATTEMPT_MOST = 3.0
# How long a stream in flight is held back while the store is away; then it goes on without ids.
HOLD = 5.0


class Writer(Protocol):
    """What the commit needs of a producer's log."""

    def note(self) -> str:
        """What the log keeps beside the end: tokens in and out, as "12/345"."""

    def store_lost(self) -> None:
        """The store has been away for so long that nothing is held back any more."""

    def taken(self, code: int, top: int, sent: int, ended: bool) -> bool:
        """The log's answer to frames up to `sent` (`ended`: with the end mark). True where there is more."""


class LogWriter:
    """A producer's side of one log: every frame in `feed.frames`, of which the log is known to hold `acked`."""

    __slots__ = ("acked", "feed", "fence", "keys", "outcome", "owner", "queued", "sealer", "stream")

    def __init__(self, stream: str, fence: str, feed: Feed, owner: Writer, log: Log) -> None:
        self.stream = stream
        self.keys = (log.names.log(stream), log.names.meta(stream))
        self.sealer = log.cipher.sealer(stream)
        self.fence = fence
        self.feed = feed
        self.owner = owner
        self.acked = 0
        self.outcome = ""
        self.queued = False


Batch = list[tuple[LogWriter, int, bool]]
"""What goes out in one flush: writers, each with the number of its last frame and whether its end goes along."""


class Committer:
    """All appends of this replica. `submit` is called whenever a writer has something new."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        self._topology = log.topology
        self._lanes: dict[int, _Lane] = {}

    def submit(self, writer: LogWriter) -> None:
        if writer.queued:
            return
        writer.queued = True
        node = self._topology.node_of(writer.keys[0])
        lane = self._lanes.get(id(node))
        if lane is None:
            lane = self._lanes[id(node)] = _Lane(self, node, self._log, self._metrics)
        lane.add(writer)

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()


class _Lane:
    """The appends of one node. While it answers, no task stands between its reply and the next flush; `_recover` is the
    task that takes over when it does not."""

    def __init__(self, committer: Committer, node: Node, log: Log, metrics: Metrics) -> None:
        self._committer = committer
        self._node = node
        self._metrics = metrics
        self._topology = log.topology
        self._kept = (millis(log.settings.retention), millis(log.settings.tombstone))
        self._waiting: list[LogWriter] = []
        self._flushing: Batch = []
        self._frames = 0
        self._started = 0.0
        self._busy = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, writer: LogWriter) -> None:
        self._waiting.append(writer)
        if not self._busy:
            self._busy = True
            # Not at once: what other upstreams have sent in this same turn of the loop goes along.
            self._loop.call_soon(self._flush)

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _flush(self) -> None:
        self._flushing, self._frames = self._take()
        if self._closed or not self._flushing:
            self._busy = False
            return
        self._started = time.monotonic()  # uvloop's own clock has whole milliseconds
        if self._topology.sharded:
            packed = b"".join([pack(*self._command([item])) for item in self._flushing])
            sent = self._node.commit.flush(packed, len(self._flushing), self._answered)
        else:
            sent = self._node.commit.flush(pack(*self._command(self._flushing)), 1, self._answered)
        if not sent:
            self._task = self._loop.create_task(self._recover(self._flushing, self._frames))

    def _answered(self, result: list[Any] | StoreDown) -> None:
        batch = self._flushing
        faults = [result] if isinstance(result, StoreDown) else [r for r in result if isinstance(r, Exception)]
        if faults or isinstance(result, StoreDown):
            if not self._closed:
                # Some of it may have been done. An append may be repeated: the log tells what it has.
                logger.info("append: %s; trying again", faults[0])
                self._task = self._loop.create_task(self._recover(batch, self._frames))
            return
        self._observe()
        self._settle(batch, [reply for replies in result for reply in replies])
        if self._waiting:
            self._loop.call_soon(self._flush)
        else:
            self._busy = False

    def _observe(self) -> None:
        self._metrics.append.observe(time.monotonic() - self._started)
        self._metrics.append_batch.observe(self._frames)

    def _settle(self, batch: Batch, replies: list[Any]) -> list[LogWriter]:
        """Tell the writers what the log says. Those that it has said nothing to."""
        failed: list[LogWriter] = []
        for (writer, sent, ended), reply in zip(batch, replies, strict=True):
            writer.queued = False
            if isinstance(reply, list):
                if writer.owner.taken(reply[0], reply[1], sent, ended):
                    self._committer.submit(writer)
            else:
                failed.append(writer)
                if isinstance(reply, Exception) and not isinstance(reply, REROUTE):
                    logger.warning("append to %s: %s; trying again", writer.stream, reply)
        return failed

    async def _recover(self, batch: Batch, frames: int) -> None:
        """Append until the store takes it, for as long as its streams can be held back."""
        pause = _RETRY_FIRST
        down_for = 0.0
        clock = self._loop.time
        mark = clock() - (time.monotonic() - self._started)
        try:
            while batch:
                self._started, self._frames = time.monotonic(), frames
                try:
                    replies = await self._exchange(batch)
                    self._observe()
                except StoreDown as error:
                    logger.warning("append: %s; trying again in %.2f s", error, pause)
                    replies = [None] * len(batch)
                failed = self._settle(batch, replies)
                if not failed:
                    return
                self._metrics.append_failures.inc()
                # An attempt that took longer than one can was stopped together with this process. Meanwhile
                # its streams may have been ended: the store is asked before anything goes on without it.
                down_for += min(clock() - mark, _ATTEMPT_MOST)
                mark = clock()
                if down_for < HOLD:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _RETRY_MOST)
                    await self._rediscover()
                    for writer in failed:
                        self._committer.submit(writer)
                else:
                    if len(failed) == len(batch):
                        # Who stands behind this flush has waited as long, and need not find out for himself.
                        failed += self._waiting
                        self._waiting = []
                    for writer in failed:
                        writer.queued = False
                        writer.owner.store_lost()
                batch, frames = self._take()
        finally:
            self._task = None
            self._busy = False
            if self._waiting and not self._closed:
                self._busy = True
                self._loop.call_soon(self._flush)

    async def _rediscover(self) -> None:
        try:
            await self._topology.refresh()
        except StoreDown as error:
            logger.warning("store: %s; trying again", error)

    def _take(self) -> tuple[Batch, int]:
        """What goes out now, and how many frames that makes."""
        batch: Batch = []
        frames = size = 0
        waiting = self._waiting
        for position, writer in enumerate(waiting):
            first = sent = writer.acked
            base = writer.feed.base
            ready = writer.feed.frames
            last = base + len(ready)
            while sent < last and (sent == first or (frames < _FLUSH_FRAMES and size < _FLUSH_BYTES)):
                size += len(ready[sent - base])
                frames += 1
                sent += 1
            batch.append((writer, sent, sent == last and bool(writer.outcome)))
            if frames >= _FLUSH_FRAMES or size >= _FLUSH_BYTES:
                self._waiting = waiting[position + 1 :]
                return batch, frames
        self._waiting = []
        return batch, frames

    async def _exchange(self, batch: Batch) -> list[Any]:
        if not self._topology.sharded:
            (reply,) = await self._node.commit.exchange([self._command(batch)])
            if isinstance(reply, list):
                return reply
            if isinstance(reply, REROUTE) or len(batch) == 1:
                return [reply] * len(batch)
            # One stream's fault (a key of another type, say) must not be every stream's: each by itself.
        replies = await self._node.commit.exchange([self._command([item]) for item in batch])
        return [reply[0] if isinstance(reply, list) else reply for reply in replies]

    def _command(self, batch: Batch) -> Command:
        keys: list[bytes] = []
        args: list[Any] = []
        for writer, sent, ended in batch:
            keys += writer.keys
            feed = writer.feed
            frames = feed.frames[writer.acked - feed.base : sent - feed.base]
            sealer = writer.sealer
            if sealer is not None:
                frames = sealer.events(writer.acked + 1, frames)
            if not ended:
                args += (writer.fence, writer.acked, "", "", len(frames), *frames)
                continue
            outcome = writer.outcome
            end = outcome if sealer is None else sealer.end(sent, b"end", outcome)
            args += (writer.fence, writer.acked, outcome, writer.owner.note(), len(frames) + 1, *frames, end)
        return ("EVALSHA", scripts.APPEND.sha, len(keys), *keys, *self._kept, *args)
