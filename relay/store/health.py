"""The store's health: does every server answer, how full is it, and is it one that keeps what it is given, from
everybody but the relay?"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterator

import redis.exceptions

from relay.metrics import Metrics
from relay.protocol.errors import StoreUnavailable
from relay.store.link import StoreDown
from relay.store.node import Node
from relay.store.topology import Topology

logger = logging.getLogger(__name__)

_CHECK_EVERY = 5.0
# While something is wrong: whoever waits for the store waits for this look.
_CHECK_AGAIN = 1.0
_PROBE_TIMEOUT = 2.0
_REASONS_SAID = 8
_FULL = "its memory is full"
_ADVICE_FULL = (
    "give it more (store.max_memory where it is embedded, else the server's maxmemory), or keep streams for a shorter "
    "time (streams.retention); what has outlived that goes by itself"
)


class Health:
    """Asks every server now and then, for the metrics; says once what is wrong with one. `sign` writes something that
    the relay writes anyway: a server may answer and still not be one that this relay can use. It raises
    StoreUnavailable."""

    def __init__(self, topology: Topology, metrics: Metrics, sign: Callable[[], Awaitable[object]]) -> None:
        self.fault: str | None = "it was not asked yet"
        """Why the relay cannot use its store, as it was seen a moment ago; None where it can."""
        self._topology = topology
        self._metrics = metrics
        self._sign = sign
        self._known: set[int] = set()
        self._said: set[str] = set()

    async def watch(self) -> None:
        """Never returns."""
        while True:
            self._found(await self._look())
            await asyncio.sleep(_CHECK_EVERY if self.fault is None else _CHECK_AGAIN)

    async def _look(self) -> str | None:
        try:
            nodes = self._topology.nodes()
            fullness = [await self._ask(node) for node in nodes]
        except StoreDown as error:
            self._metrics.store_up.set(0)
            return str(await self._rediscover() or error)
        self._metrics.store_up.set(bool(nodes))
        used, limit = max(fullness, key=lambda f: f[0] / (f[1] or float("inf")), default=(0, 0))
        self._metrics.store_memory_used.set(used)
        self._metrics.store_memory_limit.set(limit)
        try:
            await self._sign()
        except StoreUnavailable as error:
            return _described(error.__cause__ or error)
        return None

    def _found(self, fault: str | None) -> None:
        self.fault = fault
        if fault is None:
            if self._said:
                logger.info("store: the relay can use it again")
            self._said.clear()
        elif fault not in self._said and len(self._said) < _REASONS_SAID:
            self._said.add(fault)
            logger.error(
                "store: the relay cannot use it: %s; %s. Until then new streams go by store.outage",
                fault,
                _ADVICE_FULL if fault == _FULL else "check store.url, its user and that the server runs",
            )

    async def _rediscover(self) -> StoreDown | None:
        try:
            await self._topology.refresh()
        except StoreDown as error:
            return error
        return None

    async def _ask(self, node: Node) -> tuple[int, int]:
        """Bytes used and bytes that may be used; zeros where the server does not say."""
        info = await _info(node, "memory")
        if id(node) not in self._known:
            for fault in await node_faults(node):
                logger.warning("store: %s", fault)
            self._known.add(id(node))
        limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
        return int(info.get("used_memory", 0)), limit


def _described(error: BaseException) -> str:
    return _FULL if isinstance(error, redis.exceptions.OutOfMemoryError) else str(error)


async def _info(node: Node, section: str) -> dict[str, str]:
    """The answer of INFO by field."""
    try:
        info: bytes = await node.query.call("INFO", section)
    except redis.exceptions.ResponseError:
        return {}  # it is sometimes forbidden where Redis is rented
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)


async def node_faults(node: Node) -> list[str]:
    """What is wrong with one server: too old, one that would drop whole streams when memory is short, or one that lets
    anybody in."""
    faults = list(_version_faults(await _info(node, "server"), await _info(node, "memory")))
    peer = await _probe_anonymous(node)
    if peer and (not _is_loopback(peer[0]) or await _listens_beyond_loopback(node)):
        faults.append(
            f"whoever reaches {peer[0]} port {peer[1]} gets in without a password, and can read and change every "
            "stream; give that server users (deploy/redis/users.acl) or a password, and store.url the same"
        )
    return faults


async def _probe_anonymous(node: Node) -> tuple[str, int] | None:
    """The server's address, where it answers on TCP to one who shows neither password nor certificate. Tried rather
    than asked for: the relay's own user need not be allowed to see what others may."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            connection = await node.dial(anonymous=True)
            try:
                address, port = connection.getpeername(), getattr(connection, "port", 0)
                # More than PING, which probes are often let do.
                await connection.send_command("DBSIZE")
                await connection.read_response()
            finally:
                await connection.disconnect(nowait=True)
    except (StoreDown, OSError, TimeoutError, redis.exceptions.RedisError):
        return None
    return (address, port) if address else None  # a unix socket has none: its file's mode says who gets in


async def _listens_beyond_loopback(node: Node) -> bool:
    """May a server without a password, met on loopback, be reached from other machines, too?"""
    try:
        reply = await node.query.call("CONFIG", "GET", "protected-mode", "bind")
    except redis.exceptions.ResponseError:
        return False  # CONFIG is often forbidden where Redis is rented, which is not on loopback
    found = [part.decode(errors="replace") for part in reply]
    settings = dict(zip(found[::2], found[1::2], strict=True))
    addresses = settings.get("bind", "").split()
    return settings.get("protected-mode") == "no" and not all(_is_loopback(a.removeprefix("-")) for a in addresses)


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


def _version_faults(server: dict[str, str], memory: dict[str, str]) -> Iterator[str]:
    name = "valkey" if "valkey_version" in server else "redis"
    version = server.get(f"{name}_version")
    oldest = (7, 2) if name == "valkey" else (7, 0)
    if version and tuple(int(part) for part in version.split(".")[:2]) < oldest:
        yield f"{name} {version} is too old; use Redis from 7.0 or Valkey from 7.2"
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield f"maxmemory-policy is {policy}, which drops whole streams when memory is short; set it to noeviction"
