"""Shard subscriptions: channels of the store, wherever the topology keeps them.

A channel is subscribed at the node that holds its slot, and follows it: where a node answers MOVED, ends a subscription
because the slot has left it, or is lost, that channel is subscribed at the new place and the others stay as they are.
One connection per node carries all of its channels; only nodes that have wanted channels are dialled.

Promise: after whatever was missed on a channel, `on_message` is called for it, with an empty message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import MovedError

from relay.store.dialing import FAULTS, Address
from relay.store.link import MORE, StoreDown, StoreSilent, Wire, pack
from relay.store.node import Node
from relay.store.topology import Topology

logger = logging.getLogger(__name__)

_SUBSCRIBE_TIMEOUT = 1.0
_DIAL_TIMEOUT = 2.0
_RETRY_INITIAL = 0.02
_RETRY_MAX = 0.5
_REDIRECTIONS_AT_ONCE = 3
# A connection that died without a word delivers nothing and says nothing either. It is checked this often: silent at
# one check it is pinged, from the next on the topology is asked, and then it is given up. Checks are counted and not
# seconds: the time in which this whole process was stopped is not held against the server.
_CHECK_EVERY = 0.35
_SILENT_CHECKS = 5
_SUBSCRIBE, _UNSUBSCRIBE = b"SSUBSCRIBE", b"SUNSUBSCRIBE"


@dataclass(eq=False, slots=True)
class _Channel:
    name: bytes
    subscribed: asyncio.Future[None]
    at: _Connection | None = None
    missed: bool = False  # messages may have been missed since it was subscribed last, or asked for
    refusals: int = 0
    retry: asyncio.TimerHandle | None = None


class ShardSubscriptions:
    """All of a replica's. `on_message(channel, message)` is called for each message, and with an empty one after some
    may have been missed; what it raises is logged."""

    def __init__(self, topology: Topology, on_message: Callable[[bytes, bytes], None]) -> None:
        self._topology = topology
        self._on_message = on_message
        self._channels: dict[bytes, _Channel] = {}
        self._connections: dict[Node, _Connection] = {}
        self._reassigning: asyncio.Handle | None = None
        self._closed = False
        topology.on_change.append(self._reassign_soon)

    def want(self, channel: bytes) -> asyncio.Future[None]:
        """Subscribe to a channel; the future is set when that is done for the first time, or is not wanted any more."""
        wanted = self._channels.get(channel)
        if wanted is None:
            wanted = self._channels[channel] = _Channel(channel, asyncio.get_running_loop().create_future())
            self._assign(wanted, self._topology.node_of(channel))
        return wanted.subscribed

    async def subscribe(self, channel: bytes) -> None:
        """Returns when the channel is subscribed, or when that must wait for the store to come back."""
        try:
            async with asyncio.timeout(_SUBSCRIBE_TIMEOUT):
                await asyncio.shield(self.want(channel))
        except TimeoutError:
            logger.warning("subscriptions: none to %s yet", channel.decode(errors="replace"))
            if (wanted := self._channels.get(channel)) is not None:
                wanted.missed = True

    def unsubscribe(self, channel: bytes) -> None:
        wanted = self._channels.pop(channel, None)
        if wanted is not None:
            self._unassign(wanted)
            _set(wanted.subscribed)

    async def close(self) -> None:
        self._closed = True
        self._topology.on_change.remove(self._reassign_soon)
        if self._reassigning is not None:
            self._reassigning.cancel()
        for channel in self._channels.values():
            if channel.retry is not None:
                channel.retry.cancel()
            _set(channel.subscribed)
        self._channels.clear()
        connections, self._connections = list(self._connections.values()), {}
        await asyncio.gather(*(connection.close() for connection in connections))

    def _assign(self, channel: _Channel, node: Node) -> None:
        connection = self._connections.get(node)
        if connection is None:
            connection = self._connections[node] = _Connection(self, node, self._topology)
        channel.at = connection
        connection.add(channel)

    def _unassign(self, channel: _Channel, *, tell: bool = True) -> None:
        if channel.retry is not None:
            channel.retry.cancel()
            channel.retry = None
        if channel.at is not None:
            channel.at.remove(channel, tell=tell)
            channel.at = None

    def _reassign_soon(self) -> None:
        """A reshard changes the topology slot by slot; one pass serves all that one turn of the loop brings."""
        if self._reassigning is None and not self._closed:
            self._reassigning = asyncio.get_running_loop().call_soon(self._reassign)

    def _reassign(self) -> None:
        self._reassigning = None
        for channel in self._channels.values():
            node = self._topology.node_of(channel.name)
            if channel.at is not None and channel.at.node is not node:
                channel.missed = channel.missed or channel.subscribed.done()
                self._unassign(channel)
                self._assign(channel, node)
        for node, connection in list(self._connections.items()):
            if node.closed and not connection.channels:
                del self._connections[node]
                connection.end(StoreDown("the server holds nothing any more"))
            elif connection.address != node.address:
                connection.end(StoreDown("another server is the primary now"))

    # -- what connections tell --------------------------------------------------------------------------------

    def message(self, name: bytes, message: bytes) -> None:
        if name in self._channels:
            try:
                self._on_message(name, message)
            except Exception:
                logger.exception("subscriptions: a message on %s", name.decode(errors="replace"))

    def confirmed(self, channel: _Channel) -> None:
        channel.refusals = 0
        _set(channel.subscribed)
        if channel.missed:
            channel.missed = False
            self.message(channel.name, b"")

    def refused(self, channel: _Channel, error: Exception, asked: Node) -> None:
        """Its node does not serve this channel, or not now."""
        channel.missed = channel.missed or channel.subscribed.done()
        channel.refusals += 1
        self._unassign(channel, tell=False)
        if isinstance(error, MovedError):
            self._topology.follow(error, asked)
            if channel.refusals <= _REDIRECTIONS_AT_ONCE:
                self._assign(channel, self._topology.node_of(channel.name))
                return
        else:
            self._topology.refresh_soon()
            if channel.refusals == 1:
                logger.warning("subscriptions: %s: %s; trying again", channel.name.decode(errors="replace"), error)
        pause = min(_RETRY_INITIAL * 2 ** min(channel.refusals, 10), _RETRY_MAX)
        channel.retry = asyncio.get_running_loop().call_later(pause, self._retry, channel)

    def slot_left(self, channel: _Channel, node: Node) -> None:
        """The slot has left its node, which says where to on being asked again."""
        channel.missed = True
        self._unassign(channel, tell=False)
        self._assign(channel, node)

    def _retry(self, channel: _Channel) -> None:
        channel.retry = None
        self._assign(channel, self._topology.node_of(channel.name))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Subscribed(Wire):
    """A connection over which messages and confirmations come unasked."""

    def __init__(
        self, connection: AbstractConnection, on_reply: Callable[[Any], None], on_lost: Callable[[StoreDown], None]
    ) -> None:
        self._on_reply = on_reply
        self._on_lost = on_lost
        super().__init__(connection)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            self._parser.feed(data)
            while not self.is_lost and (reply := self._parser.gets()) is not MORE:
                self._on_reply(reply)
        except hiredis.HiredisError as error:
            self.close(StoreDown(f"not the Redis protocol: {error}"))

    def lost(self, reason: StoreDown) -> None:
        self._on_lost(reason)


class _Connection:
    """The channels of one node. It is dialled, again and again, while there are any."""

    def __init__(self, owner: ShardSubscriptions, node: Node, topology: Topology) -> None:
        self.node = node
        self.channels: dict[bytes, _Channel] = {}
        self.address: Address | None = node.address  # who was dialled last
        self._owner = owner
        self._topology = topology
        self._wire: _Subscribed | None = None
        self._asked: deque[tuple[bytes, bytes]] = deque()  # what has been sent and not been answered
        self._outgoing: list[tuple[bytes, bytes]] = []
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._silent_checks = 0
        self._last_warning = ""

    def add(self, channel: _Channel) -> None:
        self.channels[channel.name] = channel
        if self._wire is not None:
            self._send(_SUBSCRIBE, channel.name)
        elif self._task is None:
            self._task = asyncio.create_task(self._dial())

    def remove(self, channel: _Channel, *, tell: bool) -> None:
        self.channels.pop(channel.name, None)
        if self._wire is not None:
            if tell:
                self._send(_UNSUBSCRIBE, channel.name)
        elif not self.channels and self._task is not None:
            self._task.cancel()
            self._task = None

    def end(self, reason: StoreDown) -> None:
        """Close the connection; where channels are left, another one is dialled."""
        self.address = self.node.address
        if self._wire is not None:
            self._wire.close(reason)

    async def close(self) -> None:
        self.channels.clear()
        self.end(StoreDown("closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _dial(self) -> None:
        pause = _RETRY_INITIAL
        while True:
            try:
                async with asyncio.timeout(_DIAL_TIMEOUT):
                    connection = await self.node.dial()
                break
            except (StoreDown, *FAULTS) as error:
                if self._last_warning != (warning := f"{type(error).__name__}: {error}"):
                    self._last_warning = warning
                    logger.warning("subscriptions: %s; dialling again until it answers", warning)
                self._topology.refresh_soon()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_MAX)
        self._task = None
        self.address = self.node.address
        self._wire = _Subscribed(connection, self._replied, self._lost)
        self._silent_checks = 0
        self._timer = asyncio.get_running_loop().call_later(_CHECK_EVERY, self._check_silence, 0)
        for name in self.channels:
            self._send(_SUBSCRIBE, name)

    def _send(self, verb: bytes, name: bytes) -> None:
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append((verb, name))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._wire is not None and outgoing:
            self._asked.extend(outgoing)
            self._wire.write(b"".join([pack(verb, name) for verb, name in outgoing]))

    def _check_silence(self, received: int) -> None:
        wire = self._wire
        if wire is None:
            return
        self._silent_checks = self._silent_checks + 1 if wire.received == received else 0
        if self._silent_checks == 1 and self.channels:
            wire.write(pack("PING"))
        elif self._silent_checks == 1:
            self._silent_checks = 0  # nothing is wanted of it, and nothing asked
        elif self._silent_checks == _SILENT_CHECKS:
            wire.close(StoreSilent("the server does not answer"))
            return
        elif self._silent_checks:
            self._topology.refresh_soon()
        self._timer = asyncio.get_running_loop().call_later(_CHECK_EVERY, self._check_silence, wire.received)

    def _lost(self, reason: StoreDown) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wire = None
        self._asked.clear()
        self._outgoing = []
        if self.channels:
            logger.info("subscriptions: %s; dialling again", reason)
            self._last_warning = ""
            self._topology.refresh_soon()
            for channel in self.channels.values():
                channel.missed = channel.missed or channel.subscribed.done()
            self._task = asyncio.create_task(self._dial())

    def _replied(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._refused(reply)
        elif isinstance(reply, list) and len(reply) == 3:
            kind, name, content = reply
            if kind == b"smessage":
                self._owner.message(name, content)
            elif kind == b"ssubscribe":
                self._answered(_SUBSCRIBE, name)
                if (channel := self.channels.get(name)) is not None:
                    self._owner.confirmed(channel)
            elif kind == b"sunsubscribe":
                asked_for = self._answered(_UNSUBSCRIBE, name)
                if not asked_for and (channel := self.channels.get(name)) is not None:
                    self._owner.slot_left(channel, self.node)  # the node has given the channel's slot away

    def _answered(self, verb: bytes, name: bytes) -> bool:
        """Was this the next answer due? Answers come in the order of what was sent; what comes unasked, in between."""
        if self._asked and self._asked[0] == (verb, name):
            self._asked.popleft()
            return True
        return False

    def _refused(self, error: Exception) -> None:
        """An error names no channel: it answers what was asked first. MOVED names the slot, and where that is another
        one's, its channel was unsubscribed as the slot left, and had its answer."""
        if not self._asked:
            return
        verb, name = self._asked[0]
        if isinstance(error, MovedError) and error.slot_id != key_slot(name):
            return
        self._asked.popleft()
        if verb == _SUBSCRIBE and (channel := self.channels.get(name)) is not None:
            self._owner.refused(channel, error, self.node)
