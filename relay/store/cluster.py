"""The shards of a Cluster: which server holds which slots, as redirections and the servers' own maps say."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from urllib.parse import urlsplit

import redis.exceptions
from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError

from relay.store.dialing import Address, addresses, ask_all, connecting, endpoint, open_connection
from relay.store.node import Node
from relay.store.servers import ASK_TIMEOUT, GRACE, Servers

# A server that a redirection has named and the others do not know yet is kept for so long.
_KEEP_REDIRECTED = 30.0

_Map = tuple[tuple[int, int, Address, tuple[Address, ...]], ...]


class Cluster(Servers):
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
            if self._known:  # until the first map nobody has lost anything: the URL's server only says who has the slot
                self._take_over(before, node, owners)
            self._notify_change()
            self.refresh_soon()
        return node

    async def _refresh(self) -> None:
        asked = dict.fromkeys((*self._start, *self._known, *self._nodes))
        answers = await ask_all([self._ask(address) for address in asked], ASK_TIMEOUT, GRACE)
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
