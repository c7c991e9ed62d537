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
from relay.store.link import REROUTE, Command, StoreDown
from relay.store.log import Log, log_key, meta_key, millis
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

    __slots__ = ("acked", "feed", "fence", "outcome", "owner", "queued", "stream")

    def __init__(self, stream: str, fence: str, feed: Feed, owner: Writer) -> None:
        self.stream = stream
        self.fence = fence
        self.feed = feed
        self.owner = owner
        self.acked = 0
        self.outcome = ""
        self.queued = False


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
        node = self._topology.node_of(log_key(writer.stream))
        lane = self._lanes.get(id(node))
        if lane is None:
            lane = self._lanes[id(node)] = _Lane(self, node, self._log, self._metrics)
        lane.add(writer)

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()


class _Lane:
    """The appends of one node."""

    def __init__(self, committer: Committer, node: Node, log: Log, metrics: Metrics) -> None:
        self._committer = committer
        self._node = node
        self._metrics = metrics
        self._topology = log.topology
        self._tail = [millis(log.settings.retention), millis(log.settings.tombstone)]
        self._waiting: list[LogWriter] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, writer: LogWriter) -> None:
        self._waiting.append(writer)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = _RETRY_FIRST
        down_for = 0.0
        clock = asyncio.get_running_loop().time
        mark = clock()
        try:
            while self._waiting:
                started = time.monotonic()  # uvloop's own clock has whole milliseconds
                if not down_for:
                    mark = clock()
                batch, frames = self._take()
                try:
                    replies = await self._flush(batch)
                    self._metrics.append.observe(time.monotonic() - started)
                    self._metrics.append_batch.observe(frames)
                except StoreDown as error:
                    logger.warning("append: %s; trying again in %.2f s", error, pause)
                    replies = [None] * len(batch)
                again = False
                for (writer, sent, ended), reply in zip(batch, replies, strict=True):
                    writer.queued = False
                    if isinstance(reply, list):
                        if writer.owner.taken(reply[0], reply[1], sent, ended):
                            self._committer.submit(writer)
                    else:
                        again = True
                        if isinstance(reply, Exception) and not isinstance(reply, REROUTE):
                            logger.warning("append to %s: %s; trying again", writer.stream, reply)
                if again:
                    self._metrics.append_failures.inc()
                    # An attempt that took longer than one can was stopped together with this process. Meanwhile
                    # its streams may have been ended: the store is asked before anything goes on without it.
                    down_for += min(clock() - mark, _ATTEMPT_MOST)
                    mark = clock()
                    lost = down_for >= HOLD
                    failed = [w for (w, _, _), reply in zip(batch, replies, strict=True) if not isinstance(reply, list)]
                    if not lost:
                        await asyncio.sleep(pause)
                        pause = min(pause * 2, _RETRY_MOST)
                        await self._rediscover()
                        for writer in failed:
                            self._committer.submit(writer)
                        continue
                    if len(failed) == len(batch):
                        # Who stands behind this flush has waited as long, and need not find out for himself.
                        failed += self._waiting
                        self._waiting = []
                    for writer in failed:
                        writer.queued = False
                        writer.owner.store_lost()
                else:
                    pause = _RETRY_FIRST
                    down_for = 0.0
        finally:
            self._task = None

    async def _rediscover(self) -> None:
        try:
            await self._topology.refresh()
        except StoreDown as error:
            logger.warning("store: %s; trying again", error)

    def _take(self) -> tuple[list[tuple[LogWriter, int, bool]], int]:
        """What goes out now: for each writer the number of its last frame and whether its end goes along; and how
        many frames that makes."""
        batch: list[tuple[LogWriter, int, bool]] = []
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

    async def _flush(self, batch: list[tuple[LogWriter, int, bool]]) -> list[Any]:
        if not self._topology.sharded:
            (reply,) = await self._node.commit.exchange([self._command(batch)])
            if isinstance(reply, list):
                return reply
            if isinstance(reply, REROUTE) or len(batch) == 1:
                return [reply] * len(batch)
            # One stream's fault (a key of another type, say) must not be every stream's: each by itself.
        replies = await self._node.commit.exchange([self._command([item]) for item in batch])
        return [reply[0] if isinstance(reply, list) else reply for reply in replies]

    def _command(self, batch: list[tuple[LogWriter, int, bool]]) -> Command:
        keys: list[bytes] = []
        args: list[Any] = []
        for writer, sent, ended in batch:
            first = writer.acked - writer.feed.base
            frames = writer.feed.frames[first : sent - writer.feed.base]
            keys += (log_key(writer.stream), meta_key(writer.stream))
            outcome, note = (writer.outcome, writer.owner.note()) if ended else ("", "")
            args += (writer.fence, writer.acked, outcome, note, *self._tail, len(frames))
            args += frames
        return ("EVALSHA", scripts.APPEND.sha, len(keys), *keys, *args)
