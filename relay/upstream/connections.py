"""Connections to upstreams: which proxy they go through, who is trusted, and how long an idle one is kept.

Promises: an upstream's request never goes out on a connection that the upstream is seen to have closed, for nothing is
sent twice, and such a request would be lost; a `.netrc` is never read (aiohttp's own `trust_env` would send what it
finds there upstream).
"""

from __future__ import annotations

import asyncio
import base64
import select
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment

import aiohttp
from aiohttp.connector import Connection, TCPConnector
from yarl import URL

from relay.config import UpstreamSettings
from relay.config.tls import context
from relay.protocol.errors import UpstreamUnreachable
from relay.upstream.no_proxy import is_direct
from relay.upstream.reading import Handler

CONNECT_TIMEOUT = 10.0
_GONE = select.POLLIN | getattr(select, "POLLRDHUP", 0)

_Kind = tuple[Path | None, Path | None, float]


class Connector(TCPConnector):
    """One that looks at a connection before it is used again: its end may have come since the loop last read."""

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        while (found := await super()._get(key, traces)) is not None and _has_ended(found):
            found.close()
        return found

    async def _wrap_create_connection(self, *args: Any, addr_infos: Any, **more: Any) -> Any:
        """Where there is one address there is nothing to choose: aiohttp's way to the first of several that answers
        takes as long again as to connect."""
        address = addr_infos[0][4]
        if more["ssl"] is not None or len(addr_infos) > 1 or len(address) > 2:  # as of IPv6
            return await super()._wrap_create_connection(*args, addr_infos=addr_infos, **more)
        return await self._wrap_existing_connection(*args, host=address[0], port=address[1], **more)


def _has_ended(connection: Connection) -> bool:
    """Is there anything to read on it? While it is idle that is its end, or what makes it useless."""
    transport = connection.transport
    descriptor = -1 if transport is None else transport.get_extra_info("socket").fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, _GONE)
    return bool(poll.poll(0))


class Connections:
    """One pool for each kind of connection that the settings of upstreams ask for."""

    def __init__(self) -> None:
        self._pools: dict[_Kind, aiohttp.ClientSession] = {}
        self._proxies: dict[tuple[str, str, str | None, int | None], tuple[URL | None, str | None]] = {}

    def to(self, upstream: UpstreamSettings) -> aiohttp.ClientSession:
        kind = (upstream.ca_file, upstream.client_cert, upstream.keepalive)
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = self._open(*kind)
        return pool

    def of(self, upstream: UpstreamSettings) -> Connector:
        connector = self.to(upstream).connector
        assert isinstance(connector, Connector)
        return connector

    def proxy_for(self, upstream: UpstreamSettings, url: URL) -> tuple[URL | None, str | None]:
        """As `proxy_for` says, asked once for each address, of which there are no more than upstreams: to read the
        whole environment was a thirtieth of what a stream costs."""
        key = (upstream.proxy, url.scheme, url.host, url.port)
        found = self._proxies.get(key)
        if found is None:
            found = self._proxies[key] = proxy_for(upstream, url)
        return found

    def look_up_again(self, upstream: UpstreamSettings, address: URL) -> None:
        """Nobody is at an address any more: what is known of its name's is forgotten. (It is kept for 10 s, longer than
        a stream may have to come back.)"""
        if address.host and address.port:
            self.of(upstream).clear_dns_cache(address.host, address.port)

    @staticmethod
    def _open(ca_file: Path | None, client_cert: Path | None, keepalive: float) -> aiohttp.ClientSession:
        connector = Connector(limit=0, ssl=context(ca_file, client_cert), keepalive_timeout=keepalive)
        connector._factory = partial(Handler, asyncio.get_running_loop())  # type: ignore[assignment]
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()


def proxy_for(upstream: UpstreamSettings, url: URL) -> tuple[URL | None, str | None]:
    """The proxy on the way to a URL, and its `Proxy-Authorization` (RFC 9110, section 11.7.2).

    Raises UpstreamUnreachable where the environment names one that does not speak HTTP.
    """
    address = upstream.proxy
    if address == "off":
        return None, None
    if address == "env":
        proxies = getproxies_environment()
        address = proxies.get(url.scheme) or proxies.get("all", "")
        if not address or is_direct(url, proxies):
            return None, None
    proxy = URL(address if "://" in address else f"http://{address}")
    if proxy.scheme not in ("http", "https"):
        raise UpstreamUnreachable(
            f"The environment's proxy for this upstream does not speak HTTP ({proxy.scheme}). Set the upstream's "
            "`proxy` to one that does, or to off."
        )
    if proxy.user is None:
        return proxy, None
    shown = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return proxy.with_user(None), f"Basic {shown}"
