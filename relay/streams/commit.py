"""Group commit: append before emit, all streams of a replica together.

One flush is in flight per node; whatever arrives meanwhile, of every stream, is the next flush. An event
that arrives while none is in flight leaves at once: there is no timer. The append script is told the log's
expected top, so a lost reply is told apart from a lost write and a repeated append cannot make a hole or a
double; the producer's memory then brings the log up to date from whatever top the server names.

Promises: what one stream's writer raises, what its log answers and where its slot moves touches that stream alone;
appends are tried until the store takes them; a writer is told when the store has been away for `store.hold`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, TryAgainError

from relay.metrics import Metrics
from relay.store import scripts
from relay.store.commands import call_asking, millis, refuses_writes, republish
from relay.store.link import REROUTE, Command, StoreDown, pack_arguments
from relay.store.log import Log
from relay.store.node import Node
from relay.streams.commit_queue import CommitQueue, HoldClock
from relay.streams.writer import FIRST_FENCE, LogWriter

logger = logging.getLogger(__name__)

_RETRY_INITIAL = 0.02
_RETRY_MAX = 0.5
_CALL = pack_arguments("EVALSHA", scripts.APPEND.sha)
# The arguments of a stream that goes on, with one event: fence, expected top, outcome, note, number of frames, frame.
_ONE_EVENT = pack_arguments(FIRST_FENCE) + b"$%d\r\n%b\r\n" + pack_arguments("", "", 1) + b"$%d\r\n%b\r\n"

Item = tuple[LogWriter, int, bool]
"""What goes out of one writer: the number of its last frame, and whether its end goes along."""


class _Delayed:
    """A writer whose own log cannot take its appends just now."""

    __slots__ = ("attempts", "clock", "timer")

    def __init__(self, clock: HoldClock) -> None:
        self.attempts = 0
        self.clock = clock
        self.timer: asyncio.TimerHandle | None = None


class Committer:
    """All appends of this replica. `submit` is called whenever a writer has something new."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self.topology = log.topology
        self.metrics = metrics
        self.hold = log.store.hold
        self._kept = (millis(log.settings.retention), millis(log.settings.tombstone))
        self._packed_kept = pack_arguments(*self._kept)
        self._queues: dict[Node, CommitQueue] = {}
        self._delayed: dict[LogWriter, _Delayed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._commands = log.commands
        self._commands.along = self._along
        self.topology.on_change.append(self._topology_changed)
        self.topology.on_returned.append(self._node_returned)

    def submit(self, writer: LogWriter) -> None:
        if writer.queued or self._closed:
            return
        writer.queued = True
        node = self.topology.node_of(writer.keys[0])
        queue = self._queues.get(node)
        if queue is None:
            queue = self._queues[node] = CommitQueue(self, node)
        queue.add(writer)

    def _along(self, node: Node, command: Command) -> asyncio.Future[Any] | None:
        queue = self._queues.get(node)
        return None if queue is None or self._closed else queue.along(command)

    async def close(self) -> None:
        self._closed = True
        self.topology.on_change.remove(self._topology_changed)
        self.topology.on_returned.remove(self._node_returned)
        for delayed in self._delayed.values():
            delayed.clock.cancel()
            if delayed.timer is not None:
                delayed.timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in list(self._queues.values()):
            await queue.close()

    # -- what queues tell -----------------------------------------------------------------------------------------

    def answered(self, item: Item, reply: list[int]) -> None:
        """The log has answered an append: a code and its top, and with an end how often readers have come on other
        replicas."""
        writer, sent, ended = item
        writer.queued = False
        if ended:
            writer.visits = reply[2] if len(reply) > 2 else 0
        if self._delayed:
            self._clear_delay(writer)
        try:
            more = writer.on_append_result(reply[0], reply[1], sent, ended)
        except Exception as error:
            self.fault(writer, error)
            return
        if more:
            self.submit(writer)

    def refused(self, item: Item, error: Exception, node: Node) -> bool:
        """A node's error in the place of an answer. False where it is the node's own trouble, and all others' too."""
        writer = item[0]
        if isinstance(error, MovedError):
            self.topology.follow(error, node)
            self.delay(writer, at_once=True)
        elif isinstance(error, AskError):
            self._later(self._append_asking(item, node, self.topology.follow(error, node)))
        elif isinstance(error, TryAgainError):
            self.delay(writer)
        elif isinstance(error, (*REROUTE, NoScriptError)) or refuses_writes(error):
            return False
        else:
            logger.warning("append to %s: %s; trying again", writer.stream, error)
            self.metrics.append_failures.inc()
            self.delay(writer)
        return True

    def delay(self, writer: LogWriter, *, at_once: bool = False) -> None:
        """Append to this one a little later; what its store cannot take for too long is away."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        delayed = self._delayed.get(writer)
        if delayed is None:
            clock = HoldClock(loop, self.hold, 0.0, lambda: self.notify_store_away(writer))
            delayed = self._delayed[writer] = _Delayed(clock)
        pause = 0.0 if at_once and not delayed.attempts else min(_RETRY_INITIAL * 2**delayed.attempts, _RETRY_MAX)
        delayed.attempts = min(delayed.attempts + 1, 10)
        delayed.timer = loop.call_later(pause, self.resubmit, writer)

    def resubmit(self, writer: LogWriter) -> None:
        """Queue it where its log is now."""
        writer.queued = False
        self.submit(writer)

    def notify_store_away(self, writer: LogWriter) -> None:
        try:
            writer.on_store_away()
        except Exception as error:
            self._notify_fault(writer, error)

    def fault(self, writer: LogWriter, error: Exception) -> None:
        """It waits for nothing more here."""
        writer.queued = False
        self._clear_delay(writer)
        self._notify_fault(writer, error)

    @staticmethod
    def _notify_fault(writer: LogWriter, error: Exception) -> None:
        try:
            writer.listener.on_fault(error)
        except Exception:
            logger.exception("stream %s: a fault of the relay's own", writer.stream)

    def forget(self, node: Node) -> None:
        """Its queue has nothing to do, and nothing comes any more."""
        self._queues.pop(node, None)

    def packed(self, batch: list[Item]) -> bytes:
        """`command` as it goes over the wire. What nearly all streams append, one event, is packed here: hiredis takes
        three times as long for it, which was a tenth of the Python of an event."""
        keys: list[bytes] = []
        args: list[bytes] = []
        count = len(batch) * 8 + 5
        for item in batch:
            writer, sent, ended = item
            acked, feed = writer.acked, writer.feed
            keys.append(writer.packed_keys)
            if sent - acked == 1 and not ended and writer.offsets is None and writer.fence == FIRST_FENCE:
                entry = writer.entries.event(sent, feed.frames[acked - feed.base])
                expected = b"%d" % acked
                args.append(_ONE_EVENT % (len(expected), expected, len(entry), entry))
            else:
                arguments = self._arguments(item)
                args.append(pack_arguments(*arguments))
                count += len(arguments) - 6
        named = b"%d" % (len(batch) * 2)
        head = b"*%d\r\n%b$%d\r\n%b\r\n" % (count, _CALL, len(named), named)
        return b"".join((head, *keys, self._packed_kept, *args))

    def command(self, batch: list[Item]) -> Command:
        keys: list[bytes] = []
        args: list[Any] = []
        for item in batch:
            keys += item[0].keys
            args += self._arguments(item)
        return ("EVALSHA", scripts.APPEND.sha, len(keys), *keys, *self._kept, *args)

    @staticmethod
    def _arguments(item: Item) -> list[Any]:
        writer, sent, ended = item
        acked, feed = writer.acked, writer.feed
        entries = writer.entries.events(acked + 1, feed.frames[acked - feed.base : sent - feed.base])
        if not ended:
            note = "" if writer.offsets is None else writer.note(sent)
            return [writer.fence, acked, "", note, len(entries), *entries]
        usage, end = writer.end_content(sent, writer.listener.usage_summary())
        return [writer.fence, acked, writer.outcome, usage, len(entries) + 1, *entries, end]

    # -- single writers --------------------------------------------------------------------------------------------

    async def _append_asking(self, item: Item, owner: Node, named: Node) -> None:
        """The writer's slot is on its way to another node, and its log is there already."""
        writer = item[0]
        try:
            reply = await call_asking(named.query, self.command([item]))
        except (StoreDown, RedisError) as error:
            logger.info("append to %s: %s; trying again", writer.stream, error)
            self.delay(writer)
        except Exception as error:
            self.fault(writer, error)
        else:
            republish(owner, writer.keys[0])
            self.answered(item, reply[0])

    def _clear_delay(self, writer: LogWriter) -> None:
        delayed = self._delayed.pop(writer, None)
        if delayed is not None:
            delayed.clock.cancel()
            if delayed.timer is not None:
                delayed.timer.cancel()

    def _topology_changed(self) -> None:
        for queue in list(self._queues.values()):
            queue.topology_changed()

    def _node_returned(self, node: Node) -> None:
        queue = self._queues.get(node)
        if queue is not None:
            queue.node_returned()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
