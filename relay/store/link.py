"""One connection to one Redis node, and the commands that share its round trips.

Promises: commands queued while a flush is in flight go out together in the next one, so the number of
round trips does not grow with the number of callers; a flush is bounded in time; whatever goes wrong on
the wire surfaces as StoreDown and drops the connection, so no reply can ever answer another's command.

redis-py brings the connection (addresses, TLS, authentication) and hiredis the packing and parsing; its
pools and clients are not used here: a cancelled read can hand a poisoned connection back to a pool.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis.exceptions
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


class StoreDown(Exception):
    """The store did not answer: what was sent may or may not have been done."""


class Link:
    """One lazily opened connection. `up_since` is the monotonic time of its last opening, None while down."""

    def __init__(self, dial: Dial, timeout: float) -> None:
        self._dial = dial
        self._timeout = timeout
        self._connection: AbstractConnection | None = None
        self._queue: list[tuple[Command, asyncio.Future[Any]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._suspect = False
        self.up_since: float | None = None

    def call(self, *command: Any) -> asyncio.Future[Any]:
        """Queue a command. The future gives its reply, raises the server's ResponseError, or StoreDown."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((command, future))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        batch: list[tuple[Command, asyncio.Future[Any]]] = []
        try:
            while self._queue:
                batch, self._queue = self._queue, []
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

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one flush and return their replies in order, errors of the server among them.

        Never call it twice at a time on one link. Raises StoreDown.
        """
        fresh = self._connection is None
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._connection or await self._open()
                replies = await self._flush(connection, commands)
                forgotten = [i for i, r in enumerate(replies) if isinstance(r, redis.exceptions.NoScriptError)]
                if forgotten:  # SCRIPT FLUSH by someone: nothing of these was done
                    await self._load(connection)
                    again = await self._flush(connection, [commands[i] for i in forgotten])
                    for i, reply in zip(forgotten, again, strict=True):
                        replies[i] = reply
                self._suspect = False
                return replies
        except (OSError, TimeoutError, redis.exceptions.RedisError, EOFError) as error:
            # A connection that worked and was closed may just be dialled anew.
            self._suspect = fresh or isinstance(error, TimeoutError)
            await self.drop()
            raise StoreDown(f"{type(error).__name__}: {error}") from None
        except BaseException:
            await self.drop()
            raise

    async def _flush(self, connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                reply = await connection.read_response(
                    disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                )
            except redis.exceptions.ResponseError as error:
                reply = error
            replies.append(reply)
        return replies

    async def _open(self) -> AbstractConnection:
        connection = await self._dial()
        self._connection = connection
        await self._load(connection)
        self.up_since = time.monotonic()
        return connection

    async def _load(self, connection: AbstractConnection) -> None:
        for reply in await self._flush(connection, [("SCRIPT", "LOAD", s.text) for s in SCRIPTS]):
            if isinstance(reply, Exception):
                raise reply

    async def drop(self) -> None:
        """Close the connection; the next command opens a new one."""
        connection, self._connection, self.up_since = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Cancel what is queued and close the connection."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        await self.drop()
