"""`relay check`: are the settings usable, is the store there and safe, do the upstreams answer?"""

from __future__ import annotations

import asyncio

import aiohttp

from relay.config import Settings
from relay.store.embedded import EmbeddedStore, EmbeddedStoreError
from relay.store.health import node_faults
from relay.store.link import StoreDown
from relay.store.topology import connect

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
            found += [f"store: {fault}" for fault in await node_faults(node)]
        return found
    except StoreDown as error:
        return [f"store: cannot be reached ({error}); check store.url and that the server runs"]
    finally:
        await topology.close()


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
