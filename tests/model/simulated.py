"""A store in this process whose commands wait until they are told to be executed, and whose replies can be held or
lost.

The scripts run as they are, on fakeredis. Each replica has a node of its own to reach it by; what stands between
replica and server (connections, redirections) is tested with real servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import fakeredis
import hiredis
import redis.exceptions

from relay.store import scripts
from relay.store.link import Command, Done, StoreDown

_SCRIPTS = {script.sha: name.lower() for name, script in vars(scripts).items() if isinstance(script, scripts.Script)}
HELD = frozenset({"create", "append", "renew", "status", "read"})
"""What waits for its turn: all that the model has moves for. The rest is executed at once."""


def kind_of(command: Sequence[Any]) -> str:
    """A script's name, or the command's."""
    name = command[0].decode() if isinstance(command[0], bytes) else str(command[0])
    if name != "EVALSHA":
        return name.lower()
    sha = command[1].decode() if isinstance(command[1], bytes) else command[1]
    return _SCRIPTS[sha]


class Server:
    """What the store holds, and who is subscribed to what."""

    def __init__(self) -> None:
        fake: Any = fakeredis.FakeRedis(server=fakeredis.FakeServer(), version=(7, 2))
        self.client = fake
        self.client.response_callbacks.clear()  # replies as they stand on the wire
        for script in scripts.SCRIPTS:
            fake.execute_command("SCRIPT", "LOAD", script.text)
        self._messages = fake.pubsub()
        self._channels: set[bytes] = set()
        self.subscriptions: list[Subscriptions] = []

    def execute(self, command: Sequence[Any]) -> Any:
        """A reply, or the error that is one; what it publishes arrives before it."""
        try:
            reply = self.client.execute_command(*command)
        except redis.exceptions.ResponseError as error:
            reply = error
        while self._channels and (message := self._messages.get_message()) is not None:
            if message["type"] == "smessage":
                for subscriptions in self.subscriptions:
                    subscriptions.receive(message["channel"], message["data"])
        return reply

    def listen(self, channel: bytes) -> None:
        if channel not in self._channels:
            self._channels.add(channel)
            self._messages.ssubscribe(channel)


class Pending:
    """A command that a replica has sent."""

    def __init__(self, kind: str, command: Sequence[Any], server: Server, done: Callable[[Any], None]) -> None:
        self.kind = kind
        self.command = command
        self.sent = asyncio.get_running_loop().time()
        self._reply: list[Any] = []  # once it was executed
        self._server = server
        self._done = done

    def execute(self) -> Any:
        self._reply = [self._server.execute(self.command)]
        return self._reply[0]

    def deliver(self) -> Any:
        """Executes it where it was not."""
        reply = self._reply[0] if self._reply else self.execute()
        self._done(reply)
        return reply

    def fail(self) -> None:
        self._done(StoreDown("the connection was lost"))


class Link:
    """One way to the store. Commands do not wait for one another: nothing goes along with appends, which is a way and
    no other order (`tests/streams/test_going_along.py`)."""

    usable = False

    def __init__(self, node: Node) -> None:
        self._node = node
        self.up_since: float | None = None

    def call(self, *command: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self._node.send(command, done)
        return future

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        return [await self.call(*command) for command in commands]

    def flush(self, packed: bytes, count: int, done: Done) -> bool:
        if not self._node.up:
            return False
        reader = hiredis.Reader()
        reader.feed(packed)
        assert count == 1
        self._node.send(reader.gets(), lambda reply: done(reply if isinstance(reply, StoreDown) else [reply]))
        return True

    async def open(self) -> None:
        if not self._node.up:
            raise StoreDown("no connection")

    async def drop(self) -> None: ...

    async def close(self) -> None: ...


class Node:
    """The store as one replica reaches it. `held` are the kinds of commands that wait."""

    def __init__(self, server: Server, held: frozenset[str] = HELD) -> None:
        self.server = server
        self.held = held
        self.up = True
        self.dead = False  # of a process that is no more: nothing is heard of it, and it hears nothing
        self.closed = False
        self.address = None
        self.returned_at = float("-inf")
        self.commit, self.query, self.read = Link(self), Link(self), Link(self)
        self.query.up_since = float("-inf")
        self.pending: list[Pending] = []

    def send(self, command: Sequence[Any], done: Callable[[Any], None]) -> None:
        pending = Pending(kind_of(command), command, self.server, done)
        if self.dead:
            return
        if not self.up:
            pending.fail()
        elif pending.kind in self.held:
            self.pending.append(pending)
        else:
            pending.deliver()

    def take(self, kind: str, matches: Callable[[Pending], bool] = lambda _: True) -> Pending | None:
        """The last command of a kind that waits (earlier ones may be those of readers who have left); it waits no
        more."""
        found = next((p for p in reversed(self.pending) if p.kind == kind and matches(p)), None)
        if found is not None:
            self.pending.remove(found)
        return found

    def lose(self, keep: Callable[[Pending], bool] = lambda _: False) -> None:
        """No connection any more: nothing that waits will be executed, but what is kept, whose time is to come."""
        self.up = False
        pending, self.pending = self.pending, [command for command in self.pending if keep(command)]
        for command in pending:
            if command not in self.pending:
                command.fail()

    def found(self, now: float) -> None:
        """Reached again, after a loss or because another server has taken over."""
        self.up = True
        self.returned_at = self.query.up_since = now


class Topology:
    """One node for every key."""

    sharded = False
    refreshed_at = float("inf")  # nobody could say anything else

    def __init__(self, node: Node) -> None:
        self.node = node
        self.on_change: list[Callable[[], None]] = []
        self.on_returned: list[Callable[[Node], None]] = []

    def node_of(self, key: bytes) -> Node:
        return self.node

    def nodes(self) -> list[Node]:
        return [self.node]

    def follow(self, redirection: Exception, asked: Node) -> Node:
        return asked

    async def refresh(self) -> None: ...

    def refresh_soon(self) -> None: ...

    async def close(self) -> None: ...


class Subscriptions:
    """In the place of `relay.store.pubsub.ShardSubscriptions`: a subscription is confirmed when it is told to be."""

    def __init__(self, topology: Topology, on_message: Callable[[bytes, bytes], None]) -> None:
        self._server = topology.node.server
        self._server.subscriptions.append(self)
        self._on_message = on_message
        self._wanted: dict[bytes, asyncio.Future[None]] = {}
        self._confirmed: set[bytes] = set()

    def want(self, channel: bytes) -> asyncio.Future[None]:
        if channel not in self._wanted:
            self._wanted[channel] = asyncio.get_running_loop().create_future()
        return self._wanted[channel]

    async def subscribe(self, channel: bytes) -> None:
        await asyncio.shield(self.want(channel))

    def unsubscribe(self, channel: bytes) -> None:
        self._confirmed.discard(channel)
        if (wanted := self._wanted.pop(channel, None)) is not None and not wanted.done():
            wanted.set_result(None)

    async def close(self) -> None:
        self._server.subscriptions.remove(self)

    def confirm(self, channel: bytes) -> None:
        self._server.listen(channel)
        self._confirmed.add(channel)
        self.give_up(channel)

    def give_up(self, channel: bytes) -> None:
        """Nobody waits for it any longer."""
        if (wanted := self._wanted.get(channel)) is not None and not wanted.done():
            wanted.set_result(None)

    def receive(self, channel: bytes, message: bytes) -> None:
        if channel in self._confirmed:
            self._on_message(channel, message)

    def miss(self) -> None:
        """Subscribed anew: messages may have been missed."""
        for channel in list(self._confirmed):
            self._on_message(channel, b"")
