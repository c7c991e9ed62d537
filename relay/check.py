"""`relay check`: are the settings usable, is the store there and safe, do the upstreams answer?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import redis.exceptions

from relay.config import Settings
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError
from relay.store.link import StoreDown
from relay.store.topology import Node, connect

_TIMEOUT = 10.0


async def check(settings: Settings) -> int:
    """Print a line per finding; 0 where all is well, 1 where something would not work."""
    print("settings: ok")
    faults = [fault async for fault in _faults(settings)]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


async def _faults(settings: Settings):  # type: ignore[no-untyped-def]
    if settings.store.url == "embedded":
        store = EmbeddedStore(settings.store.data_dir)
        try:
            await asyncio.to_thread(store.start)
        except EmbeddedStoreError as error:
            yield f"store: {error}"
        else:
            print(f"store: ok (embedded in {settings.store.data_dir})")
            await asyncio.to_thread(store.stop)
    else:
        faults = await _store_faults(settings.store.url)
        for fault in faults:
            yield fault
        if not faults:
            print("store: ok")
    for upstream in settings.upstreams:
        fault_or_none = await _upstream_fault(upstream.base_url)
        if fault_or_none:
            yield f"upstream {upstream.name}: {fault_or_none}"
        else:
            print(f"upstream {upstream.name}: ok")


async def _store_faults(url: str) -> list[str]:
    try:
        topology = connect(url)
    except ValueError as error:
        return [f"store: {error}"]
    try:
        await topology.refresh()
        found: list[str] = []
        for node in topology.nodes():
            found += await node_faults(node)
        return found
    except StoreDown as error:
        return [f"store: cannot be reached ({error}); check store.url and that the server runs"]
    finally:
        await topology.close()


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
    fields = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
    name = "valkey" if "valkey_version" in fields else "redis"
    version = fields.get(f"{name}_version", "0")
    oldest = (7, 2) if name == "valkey" else (7, 0)
    if tuple(int(part) for part in version.split(".")[:2]) < oldest:
        yield f"store: {name} {version} is too old; use Redis from 7.0 or Valkey from 7.2"
    if policy and policy != b"noeviction":
        yield (
            f"store: maxmemory-policy is {policy.decode()}, which drops whole streams when memory is short; "
            "set it to noeviction"
        )


async def _upstream_fault(base_url: str) -> str | None:
    """Any HTTP answer will do: whether it likes the request is the client's credential's business."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as session,
            session.get(base_url.rstrip("/") + "/v1/models", allow_redirects=False),
        ):
            return None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"cannot be reached ({type(error).__name__}: {error}); check its base_url"
