"""One connection to one Redis node, and the commands that share its round trips.

Promises: commands queued while a flush is in flight go out together in the next one, so the number of
round trips does not grow with the number of callers; a server that says nothing is given up after the
time-out; whatever goes wrong on the wire surfaces as StoreDown and drops the connection, so no reply can
ever answer another's command.

redis-py dials (addresses, TLS, authentication), hiredis packs and parses. In between redis-py's own streams,
pools and clients are not used: packing in Python and a task's wake-up for every reply were a fifth of the CPU that
an event cost, and a cancelled read can hand a poisoned connection back to a pool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import hiredis
import redis.exceptions
from redis._parsers.base import BaseParser
from redis.asyncio.connection import AbstractConnection

from relay.store.scripts import SCRIPTS

Command = tuple[Any, ...]
Dial = Callable[[], Awaitable[AbstractConnection]]

# What a node says when it cannot serve now, or is no longer the one to ask.
REROUTE = (
    redis.exceptions.MovedError,
    redis.exceptions.AskError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.BusyLoadingError,
)
MORE = object()
# A time-out is counted in so many checks, and each counts for no more than its share: the time in which this whole
# process was stopped is not held against the server.
_CHECKS = 4


class StoreDown(Exception):
    """The store did not answer: what was sent may or may not have been done."""


class StoreSilent(StoreDown):
    """The connection is open and nothing came over it for as long as the time-out."""


Done = Callable[[list[Any] | StoreDown], None]


def pack(*command: Any) -> bytes:
    """A command as it goes over the wire; its parts are bytes, str, int or float."""
    packed: bytes = hiredis.pack_command(command)
    return packed


def pack_arguments(*arguments: Any) -> bytes:
    """Parts of a command, to be joined with others after the line that says how many they are."""
    packed = pack(*arguments)
    return packed[packed.index(b"\n") + 1 :]


class Watcher(Protocol):
    """What a link tells of its server."""

    def on_lost(self) -> None:
        """A connection was lost or could not be opened."""

    def on_opened(self) -> None:
        """A connection was opened."""

    def on_silence(self) -> None:
        """An answer is late: called again and again until it comes or the connection is given up."""


class Wire(asyncio.Protocol):
    """An open connection whose dialling is over. Subclasses take the replies and hear of its end, once."""

    def __init__(self, connection: AbstractConnection) -> None:
        # Every reply to what redis-py sent has been read: the connection and all that comes over it are ours now. The
        # writer is kept because it closes the connection when it goes.
        assert connection._writer is not None
        self._writer = connection._writer
        connection._reader = connection._writer = None
        self.received = 0
        self.is_lost = False
        self._transport = self._writer.transport
        self._parser = hiredis.Reader(replyError=BaseParser.parse_error, notEnoughData=MORE)
        self._transport.set_protocol(self)

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def write(self, packed: bytes) -> None:
        self._transport.write(packed)

    def close(self, reason: StoreDown) -> None:
        self._transport.abort()
        self._end(reason)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(StoreDown(str(error or "the connection was closed")))

    def _end(self, reason: StoreDown) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.lost(reason)

    def lost(self, reason: StoreDown) -> None:
        raise NotImplementedError


class _Exchanges(Wire):
    """One flush is in flight at most; `done` is called once for each, soon or when all is lost."""

    def __init__(self, connection: AbstractConnection, on_lost: Callable[[_Exchanges], None]) -> None:
        self._on_lost = on_lost
        self._replies: list[Any] = []
        self._due = 0
        self._done: Done | None = None
        super().__init__(connection)

    def send(self, packed: bytes, count: int, done: Done) -> None:
        self._due = count
        self._done = done
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        replies = self._replies
        self.received += len(data)
        try:
            parser.feed(data)
            while len(replies) < self._due:
                reply = parser.gets()
                if reply is MORE:
                    return
                replies.append(reply)
        except hiredis.HiredisError as error:
            self.close(StoreDown(f"not the Redis protocol: {error}"))
            return
        self._replies = []
        self._finish(replies)

    def lost(self, reason: StoreDown) -> None:
        self._on_lost(self)
        self._finish(reason)

    def _finish(self, result: list[Any] | StoreDown) -> None:
        done, self._done, self._due = self._done, None, 0
        if done is not None:
            done(result)


class Link:
    """One lazily opened connection. `up_since` is the monotonic time of its last opening, None while down. At most
    `batch_limit` queued commands go out together: a flush of many long answers takes long."""

    _loop: asyncio.AbstractEventLoop

    def __init__(
        self, dial: Dial, timeout: float, watcher: Watcher | None = None, batch_limit: int | None = None
    ) -> None:
        self._dial = dial
        self._timeout = timeout
        self._watcher = watcher
        self._batch_limit = batch_limit
        self._wire: _Exchanges | None = None
        self._queue: list[tuple[Command, asyncio.Future[Any]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._suspect = False
        self._closed = False
        self._done: Done | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._check_at = 0.0
        self._received = 0
        self._silent_checks = 0
        self.up_since: float | None = None

    @property
    def usable(self) -> bool:
        """Is it open?"""
        return self._wire is not None and self._wire.usable

    def call(self, *command: Any) -> asyncio.Future[Any]:
        """Queue a command. The future gives its reply, raises the server's ResponseError, or StoreDown. Commands that
        are queued without an await in between go out one right after the other."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((command, future))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        batch: list[tuple[Command, asyncio.Future[Any]]] = []
        try:
            while self._queue:
                batch, self._queue = (
                    self._queue[: self._batch_limit],
                    self._queue[self._batch_limit :] if self._batch_limit else [],
                )
                try:
                    replies: Sequence[Any] = await self.exchange([command for command, _ in batch])
                except StoreDown as error:
                    if self._suspect:  # who came meanwhile has waited for the same answer
                        batch += self._queue
                        self._queue = []
                    replies = [error] * len(batch)
                for (_, future), reply in zip(batch, replies, strict=True):
                    if future.done():
                        continue
                    if isinstance(reply, Exception):
                        future.set_exception(reply)
                    else:
                        future.set_result(reply)
        finally:
            self._runner = None
            for _, future in (*batch, *self._queue):
                if not future.done():
                    future.set_exception(StoreDown("the link was closed"))
                    future.exception()  # whoever still waits hears it; nobody need
            self._queue = []

    def flush(self, packed: bytes, count: int, done: Done) -> bool:
        """Send so many packed commands where the connection is open, and have their replies handed to `done` without a
        task in between. False where it is not: `exchange` opens it. Never while another flush is in flight."""
        wire = self._wire
        if wire is None or not wire.usable:
            return False
        self._send(wire, packed, count, done)
        return True

    def _send(self, wire: _Exchanges, packed: bytes, count: int, done: Done) -> None:
        self._done = done
        self._silent_checks = 0
        self._received = wire.received
        self._check_at = self._loop.time() + self._timeout / _CHECKS
        # Armed again only when it fires: a timer that was set and cancelled for each flush was a tenth of its CPU.
        if self._timer is None:
            self._timer = self._loop.call_at(self._check_at, self._check_progress)
        wire.send(packed, count, self._answered)

    def _answered(self, result: list[Any] | StoreDown) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def _check_progress(self) -> None:
        """Is an answer late? One that is coming in, however slowly, is waited for."""
        self._timer = None
        wire = self._wire
        if self._done is None or wire is None:
            return
        now = self._loop.time()
        if late := now >= self._check_at:
            self._silent_checks = self._silent_checks + 1 if wire.received == self._received else 0
            if self._silent_checks >= _CHECKS:
                wire.close(StoreSilent(f"no answer in {self._timeout:g} s"))
                return
            self._received = wire.received
            self._check_at = now + self._timeout / _CHECKS
        self._timer = self._loop.call_at(self._check_at, self._check_progress)
        if late and self._silent_checks and self._watcher is not None:
            self._watcher.on_silence()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one flush and return their replies in order, errors of the server among them.

        Never call it twice at a time on one link. Raises StoreDown.
        """
        fresh = self._wire is None
        try:
            wire = self._wire or await self._open()
            replies = await self._ask(wire, commands)
            forgotten = [i for i, r in enumerate(replies) if isinstance(r, redis.exceptions.NoScriptError)]
            if forgotten:  # SCRIPT FLUSH by someone: nothing of these was done
                await self._load(wire)
                again = await self._ask(wire, [commands[i] for i in forgotten])
                for i, reply in zip(forgotten, again, strict=True):
                    replies[i] = reply
            self._suspect = False
            return replies
        except StoreDown as error:
            # A connection that worked and was closed may just be dialled anew.
            self._suspect = fresh or isinstance(error, StoreSilent)
            self._drop(error)
            raise
        except (OSError, TimeoutError, redis.exceptions.RedisError, EOFError) as error:
            self._suspect = fresh or isinstance(error, TimeoutError)
            down = StoreDown(f"{type(error).__name__}: {error}")
            self._drop(down)
            raise down from None
        except BaseException:
            await self.drop()
            raise

    async def open(self) -> None:
        """Open the connection where it is not. Not while a flush is in flight. Raises StoreDown."""
        await self.exchange([])

    async def _ask(self, wire: _Exchanges, commands: Sequence[Command]) -> list[Any]:
        if not wire.usable:
            raise StoreDown("the connection was closed")
        if not commands:
            return []
        answer: asyncio.Future[list[Any] | StoreDown] = asyncio.get_running_loop().create_future()

        def answered(result: list[Any] | StoreDown) -> None:
            if not answer.done():
                answer.set_result(result)

        self._send(wire, b"".join([pack(*command) for command in commands]), len(commands), answered)
        result = await answer
        if isinstance(result, StoreDown):
            raise result
        return result

    async def _open(self) -> _Exchanges:
        if self._closed:
            raise StoreDown("the link was closed")
        self._loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            connection = await self._dial()
        wire = self._wire = _Exchanges(connection, self._forget)
        await self._load(wire)
        self.up_since = time.monotonic()
        if self._watcher is not None:
            self._watcher.on_opened()
        return wire

    async def _load(self, wire: _Exchanges) -> None:
        for reply in await self._ask(wire, [("SCRIPT", "LOAD", s.text) for s in SCRIPTS]):
            if isinstance(reply, Exception):
                raise reply

    def _forget(self, wire: _Exchanges) -> None:
        if self._wire is wire:
            self._wire = self.up_since = None
            self._notify_lost()

    def _notify_lost(self) -> None:
        if self._watcher is not None and not self._closed:
            self._watcher.on_lost()

    def _drop(self, reason: StoreDown) -> None:
        wire, self._wire, self.up_since = self._wire, None, None
        if wire is not None:
            wire.close(reason)
        self._notify_lost()

    async def drop(self) -> None:
        """Close the connection; the next command opens a new one."""
        if self._wire is not None:
            self._drop(StoreDown("the connection was dropped"))

    async def close(self) -> None:
        """Cancel what is queued and close the connection."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        await self.drop()
