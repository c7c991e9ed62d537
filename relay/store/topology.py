"""Which server holds a stream: a single one, the primary that Sentinel names, or a shard of a Cluster.

A stream's keys share one hash tag, so it lives whole on one shard. redis-py does the discovery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import redis.exceptions
from redis.asyncio import RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from relay.store.link import Link, StoreDown

DEFAULT_TIMEOUT = 2.0
_CONNECT_TIMEOUT = 2.0
# What a URL says of who is asking, and what only they need.
_IDENTITY = ("username", "password", "ssl_certfile", "ssl_keyfile", "ssl_password", "db")


class Node:
    """One server: a link for appends and one for everything else, so that a long replay never stands in front
    of an append. `dial` opens further connections: the doorbell's, or, `anonymous`, one that anybody could open."""

    def __init__(self, dial: Callable[..., Awaitable[AbstractConnection]], timeout: float) -> None:
        self.dial = dial
        self.commit = Link(dial, timeout)
        self.query = Link(dial, timeout)

    async def close(self) -> None:
        await self.commit.close()
        await self.query.close()


class Topology(Protocol):
    sharded: bool  # True where two streams' keys may not stand in one call

    def node_of(self, key: bytes) -> Node: ...

    def nodes(self) -> list[Node]: ...

    async def refresh(self) -> None:
        """Find out again who serves what, after a redirection or a lost connection. Raises StoreDown."""

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


async def _open(
    kind: type[AbstractConnection], kwargs: dict[str, Any], *, anonymous: bool = False
) -> AbstractConnection:
    reached = False

    async def greet(connection: AbstractConnection) -> None:
        nonlocal reached
        reached = True
        await connection.on_connect()
        # A server that wants a client's certificate, or TLS, says so only now, and only by hanging up.
        await connection.send_command("PING")
        await connection.read_response()

    said = {name: value for name, value in kwargs.items() if not (anonymous and name in _IDENTITY)}
    # Time is bounded by the caller; replies stay bytes; RESP2 is what every supported server speaks alike. Without
    # driver_info there is no CLIENT SETINFO: a permission more, which Redis 7.0 has no name for.
    fixed = {"socket_timeout": None, "socket_connect_timeout": _CONNECT_TIMEOUT, "protocol": 2, "driver_info": None}
    connection = kind(**{**said, **fixed, "redis_connect_func": greet})
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except (redis.exceptions.AuthenticationError, redis.exceptions.BusyLoadingError):
        raise
    except redis.exceptions.ConnectionError as error:
        if not reached:
            raise
        raise redis.exceptions.ConnectionError(f"{error}{_advice(kind, said)}") from None
    return connection


def _advice(kind: type[AbstractConnection], kwargs: dict[str, Any]) -> str:
    """What to try at a server that hangs up."""
    if not issubclass(kind, SSLConnection):
        return "" if issubclass(kind, UnixDomainSocketConnection) else "; if it wants TLS, write rediss in store.url"
    if "ssl_certfile" in kwargs:
        return "; does it trust the authority of the certificate in ssl_certfile?"
    return "; if it wants a client's certificate, name one in store.url: ?ssl_certfile=FILE&ssl_keyfile=FILE"


class _Single:
    sharded = False

    def __init__(self, url: str, timeout: float) -> None:
        kwargs: dict[str, Any] = dict(parse_url(url))
        kind: type[AbstractConnection] = kwargs.pop("connection_class", Connection)
        self._node = Node(partial(_open, kind, kwargs), timeout)

    def node_of(self, key: bytes) -> Node:
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]

    async def refresh(self) -> None:
        return None

    async def close(self) -> None:
        await self._node.close()


class _Sentinel:
    """The primary is asked for anew at every opening, so a dropped link is a followed failover."""

    sharded = False

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        self._service = parts.path.strip("/")
        if not self._service:
            raise ValueError("store.url: name the primary's service, as in redis+sentinel://host:26379/mymaster")
        credentials, _, hosts = parts.netloc.rpartition("@")
        # The credentials and the query are the servers'; sentinels are asked without, but for what TLS needs.
        servers = urlunsplit((parts.scheme, f"{credentials}@_" if credentials else "_", "", parts.query, ""))
        self._kwargs: dict[str, Any] = dict(parse_url(servers))
        self._kind: type[AbstractConnection] = self._kwargs.pop("connection_class", Connection)
        addresses = []
        for host in hosts.split(","):
            name, _, port = host.rpartition(":")
            addresses.append((name or port, int(port) if name else 26379))
        asking: dict[str, Any] = {n: value for n, value in self._kwargs.items() if n.startswith("ssl_")}
        asking |= {"ssl": issubclass(self._kind, SSLConnection), "socket_timeout": _CONNECT_TIMEOUT}
        # One new try, for a connection that was closed meanwhile; the default's many would outlast the caller's time.
        asking |= {"retry": Retry(NoBackoff(), 1), "driver_info": None}
        self._sentinel = Sentinel(addresses, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        self._node = Node(self._dial, timeout)

    async def _dial(self, *, anonymous: bool = False) -> AbstractConnection:
        try:
            host, port = await self._sentinel.discover_master(self._service)
        except redis.exceptions.ConnectionError:
            message = f"no sentinel, asked without a password, names a primary {self._service!r}"
            raise redis.exceptions.ConnectionError(message + _advice(self._kind, self._kwargs)) from None
        return await _open(self._kind, {**self._kwargs, "host": host, "port": port}, anonymous=anonymous)

    def node_of(self, key: bytes) -> Node:
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]

    async def refresh(self) -> None:
        await self._node.commit.drop()
        await self._node.query.drop()

    async def close(self) -> None:
        await self._node.close()
        for sentinel in self._sentinel.sentinels:
            await sentinel.aclose()


class _Cluster:
    sharded = True

    def __init__(self, url: str, timeout: float) -> None:
        self._cluster = RedisCluster.from_url(url, driver_info=None)
        self._timeout = timeout
        self._nodes: dict[str, Node] = {}
        self._ready = False
        self._lock = asyncio.Lock()
        # Until the first refresh every key goes to the address that was given, which redirects.
        kwargs: dict[str, Any] = dict(parse_url(url))
        kind: type[AbstractConnection] = kwargs.pop("connection_class", Connection)
        self._first = Node(partial(_open, kind, kwargs), timeout)
        self._kind = kind
        self._kwargs = kwargs

    def node_of(self, key: bytes) -> Node:
        if not self._ready:
            return self._first
        try:
            found = self._cluster.nodes_manager.get_node_from_slot(key_slot(key))
        except redis.exceptions.RedisError:
            return self._first
        return self._node(found)

    def _node(self, found: ClusterNode) -> Node:
        node = self._nodes.get(found.name)
        if node is None:
            kwargs = {**self._kwargs, "host": found.host, "port": found.port}
            node = self._nodes[found.name] = Node(partial(_open, self._kind, kwargs), self._timeout)
        return node

    def nodes(self) -> list[Node]:
        return [self._node(found) for found in self._cluster.get_primaries()] if self._ready else [self._first]

    async def refresh(self) -> None:
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout):
                    if not self._ready:  # so that what keeps the relay out is said in full
                        await (await self._first.dial()).disconnect(nowait=True)
                    await self._cluster.nodes_manager.initialize()
            except (
                OSError,
                TimeoutError,
                redis.exceptions.RedisError,
                redis.exceptions.RedisClusterException,
            ) as error:
                raise StoreDown(f"{type(error).__name__}: {error}") from None
            self._ready = True

    async def close(self) -> None:
        for node in (*self._nodes.values(), self._first):
            await node.close()
        # Discovery is called directly, so the client does not know of the connections that it opened.
        await self._cluster.nodes_manager.aclose()
        await self._cluster.nodes_manager.aclose("startup_nodes")
