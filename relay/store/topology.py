"""Which server holds a stream: a single one, the primary that Sentinel names, or a shard of a Cluster.

A stream's keys share one hash tag, so it lives whole on one shard. Who serves a key is asked at each send: redirections
change the answer at once, and after a lost connection all sentinels, or all known servers of the Cluster, are asked
together. What is not needed any more is closed and dialled no more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.exceptions import AskError

from relay.store.cluster import Cluster
from relay.store.dialing import open_connection
from relay.store.node import Node
from relay.store.sentinel import Sentinel
from relay.store.servers import Servers

DEFAULT_TIMEOUT = 2.0


class Topology(Protocol):
    sharded: bool  # True where two streams' keys may not stand in one call
    refreshed_at: float  # the monotonic time of the last answer to who serves what
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
        return Sentinel(plain, timeout)
    if form == "cluster":
        return Cluster(plain, timeout)
    if form:
        raise ValueError(f"{parts.scheme}: is no form of store; use redis+sentinel:// or redis+cluster://")
    return _Single(plain, timeout)


class _Single(Servers):
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
