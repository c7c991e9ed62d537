"""The store's health: does every server answer, how full is it, and is it one that keeps what it is given?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import redis.exceptions

from relay.metrics import Metrics
from relay.store.link import StoreDown
from relay.store.topology import Node, Topology

logger = logging.getLogger(__name__)

_EVERY = 5.0


class Health:
    """Asks every server now and then, for the metrics; says once what is wrong with one."""

    def __init__(self, topology: Topology, metrics: Metrics) -> None:
        self._topology = topology
        self._metrics = metrics
        self._known: set[int] = set()

    async def watch(self) -> None:
        """Never returns."""
        while True:
            try:
                nodes = self._topology.nodes()
                fullness = [await self._ask(node) for node in nodes]
                self._metrics.store_up.set(bool(nodes))
                used, limit = max(fullness, key=lambda f: f[0] / (f[1] or float("inf")), default=(0, 0))
                self._metrics.store_memory_used.set(used)
                self._metrics.store_memory_limit.set(limit)
            except StoreDown:
                self._metrics.store_up.set(0)
                await self._rediscover()
            await asyncio.sleep(_EVERY)

    async def _rediscover(self) -> None:
        try:
            await self._topology.refresh()
        except StoreDown as error:
            logger.warning("store: %s; trying again", error)

    async def _ask(self, node: Node) -> tuple[int, int]:
        """Bytes used and bytes that may be used; zeros where the server does not say."""
        try:
            info = fields(await node.query.call("INFO", "memory"))
            if id(node) not in self._known:
                for fault in await node_faults(node):
                    logger.warning("store: %s", fault)
                self._known.add(id(node))
        except redis.exceptions.ResponseError:
            return 0, 0  # INFO is sometimes forbidden where Redis is rented
        limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
        return int(info.get("used_memory", 0)), limit


def fields(info: bytes) -> dict[str, str]:
    """The answer of INFO by field."""
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)


async def node_faults(node: Node) -> list[str]:
    """What is wrong with one server: too old, or one that would drop whole streams when memory is short."""
    return list(_judge(await node.query.call("INFO", "server"), await _policy(node)))


async def _policy(node: Node) -> bytes:
    try:
        reply = await node.query.call("CONFIG", "GET", "maxmemory-policy")
        return bytes(reply[1]) if reply else b""
    except redis.exceptions.ResponseError:
        return b""  # CONFIG is often forbidden where Redis is rented


def _judge(info: bytes, policy: bytes) -> Iterator[str]:
    found = fields(info)
    name = "valkey" if "valkey_version" in found else "redis"
    version = found.get(f"{name}_version", "0")
    oldest = (7, 2) if name == "valkey" else (7, 0)
    if tuple(int(part) for part in version.split(".")[:2]) < oldest:
        yield f"{name} {version} is too old; use Redis from 7.0 or Valkey from 7.2"
    if policy and policy != b"noeviction":
        yield (
            f"maxmemory-policy is {policy.decode()}, which drops whole streams when memory is short; "
            "set it to noeviction"
        )
