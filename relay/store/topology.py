"""Which server holds a stream: a single one, the primary that Sentinel names, or a shard of a Cluster.

A stream's keys share one hash tag, so it lives whole on one shard. Who serves a key is asked at each send: redirections
change the answer at once, and after a lost connection all sentinels, or all known servers of the Cluster, are asked
together. What is not needed any more is closed and dialled no more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import redis.exceptions
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError

from relay.store.dialing import FAULTS, Address, addresses, advice, ask_all, connecting, endpoint, open_connection
from relay.store.link import Link, StoreDown

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 2.0
_ASK_TIMEOUT = 1.0
_REDIAL_INITIAL = 0.02
_REDIAL_MAX = 0.5
# How long after the first answer the others are waited for: they may know better, and one of them may be silent.
_GRACE = 0.1
# Not sooner than so long after the last answer is the same question asked unasked.
_FRESH = 0.1
# A server that a redirection has named and the others do not know yet is kept for so long.
_KEEP_REDIRECTED = 30.0
# Pages of a log in one flush: each may have 256 KiB.
_READ_BATCH = 16


class Node:
    """One server: a link for appends, one for pages of events and one for everything else, so that a long replay never
    stands in front of an append or a renewal. `dial` opens further connections: that of the subscriptions, or,
    `anonymous`, one that anybody could open. `returned_at` is when it was reached again after a loss, `address` who
    that was, where it is known."""

    def __init__(
        self,
        dial: Callable[..., Awaitable[AbstractConnection]],
        timeout: float,
        topology: _Servers | None = None,
        address: Address | None = None,
    ) -> None:
        self.dial = dial
        self.address = address
        self.closed = False
        self.lost = False
        self.returned_at = float("-inf")
        self.redirected_at = float("-inf")
        self._topology = topology
        self.commit = Link(dial, timeout, self)
        self.query = Link(dial, timeout, self)
        self.read = Link(dial, timeout, batch_limit=_READ_BATCH)

    def on_lost(self) -> None:
        if not self.closed and not self.lost:
            self.lost = True
            if self._topology is not None:
                self._topology.reconnect(self)

    def on_opened(self) -> None:
        if self.lost:
            self.mark_returned()

    def on_silence(self) -> None:
        if self._topology is not None and not self.closed:
            self._topology.refresh_soon()

    def mark_returned(self) -> None:
        """It answers again; what it holds may be less than before."""
        self.lost = False
        self.returned_at = time.monotonic()
        if self._topology is not None:
            self._topology.notify_returned(self)

    async def drop(self) -> None:
        """Open all connections anew: another server has the address."""
        for link in (self.commit, self.query, self.read):
            await link.drop()

    async def close(self) -> None:
        self.closed = True
        for link in (self.commit, self.query, self.read):
            await link.close()


class Topology(Protocol):
    sharded: bool  # True where two streams' keys may not stand in one call
    on_change: list[Callable[[], None]]  # called when another server than before holds a key
    on_returned: list[Callable[[Node], None]]  # called when a lost server was reached again

    def node_of(self, key: bytes) -> Node: ...

    def nodes(self) -> list[Node]: ...

    def follow(self, redirection: AskError, asked: Node) -> Node:
        """The node that a MOVED or ASK of `asked` names; MOVED holds from now on for all keys of its slot."""

    async def refresh(self) -> None:
        """Find out again who serves what, after a lost connection. Raises StoreDown."""

    def refresh_soon(self) -> None:
        """Begin that, where it is not under way."""

    async def close(self) -> None: ...


def connect(url: str, timeout: float = DEFAULT_TIMEOUT) -> Topology:
    """The topology that a store URL names (see `store.url`); nothing is opened yet. Raises ValueError."""
    parts = urlsplit(url)
    scheme, _, form = parts.scheme.partition("+")
    plain = urlunsplit((scheme, *parts[1:]))
    if form == "sentinel":
        return _Sentinel(plain, timeout)
    if form == "cluster":
        return _Cluster(plain, timeout)
    if form:
        raise ValueError(f"{parts.scheme}: is no form of store; use redis+sentinel:// or redis+cluster://")
    return _Single(plain, timeout)


class _Servers:
    """What the three forms share: one question at a time, and lost servers that are dialled until they answer."""

    sharded = False

    def __init__(self, timeout: float) -> None:
        self.on_change: list[Callable[[], None]] = []
        self.on_returned: list[Callable[[Node], None]] = []
        self._timeout = timeout
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")
        self._reconnecting: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def nodes(self) -> list[Node]:
        raise NotImplementedError

    async def _refresh(self) -> None:
        raise NotImplementedError

    def follow(self, redirection: AskError, asked: Node) -> Node:
        return asked

    async def refresh(self) -> None:
        self.refresh_soon(at_once=True)
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)

    def refresh_soon(self, *, at_once: bool = False) -> None:
        fresh = time.monotonic() - self._refreshed_at < _FRESH
        if self._refreshing is None and not self._closed and (at_once or not fresh):
            self._refreshing = asyncio.create_task(self._run_refresh())
            self._refreshing.add_done_callback(self._refresh_done)

    async def _run_refresh(self) -> None:
        try:
            await self._refresh()
        except TimeoutError:
            raise StoreDown(f"no answer in {_ASK_TIMEOUT:g} s") from None
        except FAULTS as error:
            raise StoreDown(f"{type(error).__name__}: {error}") from None
        self._refreshed_at = time.monotonic()

    def _refresh_done(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled() and task.exception() is not None:
            logger.debug("store: %s", task.exception())

    def reconnect(self, node: Node) -> None:
        """A connection to it was lost: have it opened again as soon as it answers, whether or not anything is wanted of
        it just now, so that those who wait for its return hear of it."""
        if not self._closed:
            task = asyncio.create_task(self._reconnect(node))
            self._reconnecting.add(task)
            task.add_done_callback(self._reconnecting.discard)

    async def _reconnect(self, node: Node) -> None:
        pause = _REDIAL_INITIAL
        while node.lost and not node.closed:
            answer = node.query.call("PING")
            while not answer.done():  # which takes long where nobody answers, not even that nobody is there
                self.refresh_soon()
                await asyncio.wait([answer], timeout=_REDIAL_MAX)
            if answer.cancelled() or answer.exception() is not None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _REDIAL_MAX)
            elif node.lost:
                node.mark_returned()

    def notify_returned(self, node: Node) -> None:
        for callback in list(self.on_returned):
            callback(node)

    def _notify_change(self) -> None:
        for callback in list(self.on_change):
            callback()

    def _close_later(self, node: Node) -> None:
        node.closed = True
        task = asyncio.create_task(node.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self._closed = True
        tasks = [*self._reconnecting, *([self._refreshing] if self._refreshing is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        for node in self.nodes():
            await node.close()


class _Single(_Servers):
    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(timeout)
        kwargs: dict[str, Any] = dict(parse_url(url))
        kind: type[AbstractConnection] = kwargs.pop("connection_class", Connection)
        self._node = Node(partial(open_connection, kind, kwargs), timeout, self)

    def node_of(self, key: bytes) -> Node:
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]

    async def _refresh(self) -> None:
        return None


class _Sentinel(_Servers):
    """The primary is asked for anew at every opening, so a dropped link is a followed failover."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(timeout)
        parts = urlsplit(url)
        self._service = parts.path.strip("/")
        if not self._service:
            raise ValueError("store.url: name the primary's service, as in redis+sentinel://host:26379/mymaster")
        self._sentinels = addresses(parts.netloc, 26379)
        self._kind, self._kwargs = connecting(parts)
        # The credentials and the query are the servers'; sentinels are asked without, but for what TLS needs.
        self._asking = {name: value for name, value in self._kwargs.items() if name.startswith("ssl_")}
        self._node = Node(self._dial, timeout, self)
        self._moved = asyncio.Event()  # set, and replaced, when another server becomes the primary

    async def _dial(self, *, anonymous: bool = False) -> AbstractConnection:
        while True:
            await self.refresh()
            assert self._node.address is not None
            host, port = self._node.address
            moved = asyncio.ensure_future(self._moved.wait())
            opening = asyncio.ensure_future(
                open_connection(self._kind, {**self._kwargs, "host": host, "port": port}, anonymous=anonymous)
            )
            try:
                await asyncio.wait([opening, moved], return_when=asyncio.FIRST_COMPLETED)
                if opening.done():
                    return opening.result()
            finally:
                moved.cancel()
                opening.cancel()

    async def _refresh(self) -> None:
        try:
            answers = await ask_all([self._ask(sentinel) for sentinel in self._sentinels], _ASK_TIMEOUT, _GRACE)
        except FAULTS:
            message = f"no sentinel, asked without a password, names a primary {self._service!r}"
            raise redis.exceptions.ConnectionError(message + advice(self._kind, self._kwargs)) from None
        _, address = max(answers)
        before, self._node.address = self._node.address, address
        if before not in (None, address):
            logger.warning("store: the primary is %s:%d now", *address)
            self._moved.set()
            self._moved = asyncio.Event()
            await self._node.drop()
            self._notify_change()

    async def _ask(self, sentinel: Address) -> tuple[int, Address]:
        """The primary that a sentinel names and can reach, and how recent that knowledge is."""
        host, port = sentinel
        connection = await open_connection(self._kind, {**self._asking, "host": host, "port": port})
        try:
            await connection.send_command("SENTINEL", "MASTER", self._service)
            reply: list[bytes] = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        said = {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
        flags = said["flags"].split(",")
        if "master" not in flags or "s_down" in flags or "o_down" in flags:
            raise redis.exceptions.ConnectionError(f"{host}:{port} says that {self._service!r} is {said['flags']}")
        return int(said["config-epoch"]), (said["ip"], int(said["port"]))

    def node_of(self, key: bytes) -> Node:
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]


_Map = tuple[tuple[int, int, Address, tuple[Address, ...]], ...]


class _Cluster(_Servers):
    sharded = True

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(timeout)
        parts = urlsplit(url)
        self._start = addresses(parts.netloc, 6379)
        self._kind, self._kwargs = connecting(parts)
        # Until the first answer every key is sent to a server of the URL, which redirects.
        self._first = Node(self._dial_any, timeout, self, self._start[0])
        self._nodes = {address: self._first for address in self._start if len(self._start) == 1}
        self._slots = [self._first] * REDIS_CLUSTER_HASH_SLOTS
        self._known: set[Address] = set()

    async def _dial_any(self, *, anonymous: bool = False) -> AbstractConnection:
        asked = [self._dial(address, anonymous=anonymous) for address in self._start]
        opened, *further = await ask_all(asked, self._timeout, 0.0)
        for connection in further:
            await connection.disconnect(nowait=True)
        return opened

    async def _dial(self, address: Address, *, anonymous: bool = False) -> AbstractConnection:
        host, port = address
        return await open_connection(self._kind, {**self._kwargs, "host": host, "port": port}, anonymous=anonymous)

    def node_of(self, key: bytes) -> Node:
        return self._slots[key_slot(key)]

    def nodes(self) -> list[Node]:
        """Those that hold slots."""
        return list(dict.fromkeys(self._slots))

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(partial(self._dial, address), self._timeout, self, address)
        return node

    def follow(self, redirection: AskError, asked: Node) -> Node:
        node = self._node(endpoint(redirection.host, redirection.port, asked.address))
        node.redirected_at = time.monotonic()
        if isinstance(redirection, MovedError) and (before := self._slots[redirection.slot_id]) is not node:
            owners = set(self._slots)
            self._slots[redirection.slot_id] = node
            self._take_over(before, node, owners)
            self._notify_change()
            self.refresh_soon()
        return node

    async def _refresh(self) -> None:
        asked = dict.fromkeys((*self._start, *self._known, *self._nodes))
        answers = await ask_all([self._ask(address) for address in asked], _ASK_TIMEOUT, _GRACE)
        # A server that was cut off for a while has an old map until its peers have told it.
        ((found, _),) = Counter(answers).most_common(1)
        self._apply(found)

    async def _ask(self, address: Address) -> _Map:
        node = self._nodes.get(address)
        if node is not None and node.query.up_since is not None:
            reply = await node.query.call("CLUSTER", "SLOTS")
        else:
            connection = await self._dial(address)
            try:
                await connection.send_command("CLUSTER SLOTS")
                reply = await connection.read_response()
            finally:
                await connection.disconnect(nowait=True)
        if not reply:
            raise redis.exceptions.ConnectionError(f"{address[0]}:{address[1]} knows of no server that holds slots")
        ranges = []
        for first, last, *servers in reply:
            primary, *replicas = (endpoint(host, port, address) for host, port, *_ in servers)
            ranges.append((first, last, primary, tuple(sorted(replicas))))
        return tuple(sorted(ranges))

    def _apply(self, found: _Map) -> None:
        before, known_before = self._slots, self._known
        self._known = {address for _, _, primary, replicas in found for address in (primary, *replicas)}
        self._slots = [self._node(found[0][2])] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, primary, _ in found:
            self._slots[first : last + 1] = [self._node(primary)] * (last + 1 - first)
        retired = self._retire()
        if self._slots != before and known_before:
            owners = set(before)
            for one, other in {pair for pair in zip(before, self._slots, strict=True) if pair[0] is not pair[1]}:
                self._take_over(one, other, owners)
        if self._slots != before or retired:
            self._notify_change()

    @staticmethod
    def _take_over(before: Node, node: Node, owners: set[Node]) -> None:
        """A slot has another server: it holds no more of it than the former one did, and less where it was that one's
        replica."""
        if before.lost or node not in owners:
            node.mark_returned()
        else:
            node.returned_at = max(node.returned_at, before.returned_at)

    def _retire(self) -> bool:
        """Close what holds no slots any more. Was there any?"""
        kept, long_ago = set(self._slots), time.monotonic() - _KEEP_REDIRECTED
        idle = {self._first, *self._nodes.values()} - kept
        retired = [node for node in idle if not node.closed and node.redirected_at < long_ago]
        self._nodes = {address: node for address, node in self._nodes.items() if node not in retired}
        for node in retired:
            self._close_later(node)
        return bool(retired)

    async def close(self) -> None:
        await super().close()
        for node in (self._first, *self._nodes.values()):
            await node.close()
