"""Commands and scripts by key: sent to the node that holds the key now, and followed where it is another.

The node is asked of the topology at each send, so what one call learns from MOVED all others know. ASK holds for the
one command; TRYAGAIN and CLUSTERDOWN are waited for, for a moment. All commands that come this way may be repeated, so
a lost reply is asked for again, once.

What every stream sends as it begins goes along with the appends (`send`): a write to a connection and the server's turn
for it cost more than the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any
from weakref import WeakKeyDictionary

import redis.exceptions
from redis.exceptions import AskError, ClusterDownError, MovedError, ReadOnlyError, TryAgainError

from relay.protocol.errors import StoreUnavailable
from relay.store.link import REROUTE, Command, Link, StoreDown
from relay.store.node import Node
from relay.store.scripts import Script
from relay.store.topology import Topology

_ATTEMPTS = 2
_REDIRECTIONS = 8
# What a Cluster says while keys are on their way, or one server takes over from another, and for how long that is
# waited for.
_UNSETTLED = (TryAgainError, ClusterDownError)
_UNSETTLED_FOR = 1.5
_UNSETTLED_RETRY = 0.05
_CONFIRMED_FOR = 0.25
_WRITE_REFUSALS = ("MISCONF", "NOREPLICAS")  # as a server says that can neither save nor find its replicas


def millis(seconds: float) -> int:
    return int(seconds * 1000)


def refuses_writes(error: Exception) -> bool:
    """Does the server say that it serves, but stores nothing just now?"""
    return isinstance(error, redis.exceptions.OutOfMemoryError) or str(error).startswith(_WRITE_REFUSALS)


class NotSent(Exception):
    """What was to go along with appends did not leave, or was not done: it is for the node's other connection."""


Along = Callable[[Node, Command], "asyncio.Future[Any] | None"]
"""Sends a command with a node's next appends, in front of them; None where none can leave now. The future raises what
`Link.call` does, and NotSent."""


def _not_along(node: Node, command: Command) -> asyncio.Future[Any] | None:
    return None


class Sent:
    """A command that is on its way; `first` is its first attempt. Awaited, it is followed and asked for again like any
    other."""

    __slots__ = ("_channel", "_command", "_commands", "_key", "_node", "first")

    def __init__(self, commands: Commands, key: bytes, command: Command, channel: bytes | None) -> None:
        self._commands = commands
        self._key = key
        self._command = command
        self._channel = channel
        self._node = node = commands.topology.node_of(key)
        self.first = commands.along(node, command) or node.query.call(*command)

    def __await__(self) -> Generator[Any, None, Any]:
        call = self._commands.perform(self._key, self._command, False, self._channel, (self._node, self.first))
        return call.__await__()


async def all_of(*sent: Sent) -> None:
    """Returns when all have been done. Raises StoreUnavailable. No task is made for any, while the store answers; those
    that it has not done are sent again in their order."""
    failed = []
    for one in reversed(sent):  # before the last is done the others mostly are, and need no waiting for
        try:
            await one.first
        except Exception:
            failed.append(one)
    if failed:
        await asyncio.gather(*reversed(failed))


class Commands:
    """On one topology. Every call raises StoreUnavailable where the key's node cannot serve it. `along` is the way of
    what is to go along with appends."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.along: Along = _not_along
        self._refused_at: WeakKeyDictionary[Node, float] = WeakKeyDictionary()  # when a node last took no writes

    @property
    def on_returned(self) -> list[Callable[[Node], None]]:
        """What is called, with the node, when one that was lost answers again or another took over."""
        return self.topology.on_returned

    async def run(self, key: bytes, script: Script, keys: list[bytes], args: list[Any], *, reads: bool = False) -> Any:
        """A script on the node of a key."""
        return await self.perform(key, ("EVALSHA", script.sha, len(keys), *keys, *args), reads, keys[0])

    def send(self, key: bytes, *command: Any) -> Sent:
        """Send a command at once, with the next appends where that can be, whether its answer is awaited or not."""
        return Sent(self, key, command, None)

    def send_script(self, key: bytes, script: Script, keys: list[bytes], args: list[Any]) -> Sent:
        """As `send`."""
        return Sent(self, key, ("EVALSHA", script.sha, len(keys), *keys, *args), keys[0])

    async def call(self, key: bytes, *command: Any, reads: bool = False) -> Any:
        """A command on the node of a key; `reads` sends it over the link for pages of events."""
        return await self.perform(key, command, reads, None)

    async def confirm(self, key: bytes) -> None:
        """Is the server that has just answered still the one that holds the key, as the others see it? A primary that
        was cut off or frozen goes on answering from what it had, until it is told that another one took over. Raises
        StoreUnavailable where it is not, and where nobody can say. What the others said a moment ago will do: a primary
        is frozen for longer before another one takes over."""
        if time.monotonic() <= self.topology.refreshed_at + _CONFIRMED_FOR:
            return
        asked = self.topology.node_of(key)
        address = asked.address
        try:
            await self.topology.refresh()
        except StoreDown as error:
            raise StoreUnavailable() from error
        if self.topology.node_of(key) is not asked or asked.address != address:
            raise StoreUnavailable

    def healthy_for(self, key: bytes) -> float:
        """For how many seconds the key's node has been in reach and, for all that is known here, has taken writes:
        while it took none, no lease could be renewed."""
        node = self.topology.node_of(key)
        since = node.query.up_since
        if since is None:
            return 0.0
        return time.monotonic() - max(since, self._refused_at.get(node, since))

    def returned_for(self, key: bytes) -> float:
        """For how many seconds the key's node has been back after a loss, infinity where it was never lost: for a while
        it may hold less than it did."""
        return time.monotonic() - self.topology.node_of(key).returned_at

    async def perform(
        self,
        key: bytes,
        command: Command,
        reads: bool,
        channel: bytes | None,
        sent: tuple[Node, asyncio.Future[Any]] | None = None,
    ) -> Any:
        """A command, to its answer; `sent` is its first attempt, where that is on its way."""
        failures = redirections = 0
        asked: Node | None = None  # the node that an ASK has named for this one command
        give_up = time.monotonic() + _UNSETTLED_FOR
        while True:
            owner = self.topology.node_of(key)
            node = asked or owner
            link = node.read if reads else node.query
            try:
                if sent is not None:
                    (node, first), sent = sent, None
                    return await first
                if asked is None:
                    return await link.call(*command)
                reply = await call_asking(link, command)
                if channel is not None:
                    republish(owner, channel)
                return reply
            except NotSent:
                continue
            except AskError as error:
                redirections += 1
                if redirections > _REDIRECTIONS:
                    raise StoreUnavailable() from error
                named = self.topology.follow(error, node)
                asked = None if isinstance(error, MovedError) else named
            except _UNSETTLED as error:
                if time.monotonic() > give_up:
                    raise StoreUnavailable() from error
                asked = None
                self.topology.refresh_soon()
                await asyncio.sleep(_UNSETTLED_RETRY)
            except (StoreDown, *REROUTE) as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise StoreUnavailable() from error
                asked = None
                if isinstance(error, ReadOnlyError):
                    await link.drop()  # what was a primary is none any more, and the address may be another's now
                with contextlib.suppress(StoreDown):
                    await self.topology.refresh()
            except redis.exceptions.ResponseError as error:
                if refuses_writes(error):
                    self._refused_at[node] = time.monotonic()
                raise StoreUnavailable() from error


def call_asking(link: Link, command: tuple[Any, ...]) -> asyncio.Future[Any]:
    """Send a command to a node that is only about to get the slot."""
    link.call("ASKING").add_done_callback(lambda done: done.cancelled() or done.exception())
    return link.call(*command)


def republish(owner: Node, channel: bytes) -> None:
    """A script that ran where the slot is going to be has published there; until the slot has moved, those who follow a
    channel are subscribed at its owner."""
    told = owner.query.call("SPUBLISH", channel, b"")
    told.add_done_callback(lambda done: done.cancelled() or done.exception())
