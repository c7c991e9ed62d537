"""Connections to upstreams: which proxy they go through, who is trusted, and how long an idle one is kept.

Promises: an upstream's request never goes out on a connection that the upstream is seen to have closed, for nothing is
sent twice, and such a request would be lost; a `.netrc` is never read (aiohttp's own `trust_env` would send what it
finds there upstream).
"""

from __future__ import annotations

import base64
import select
from pathlib import Path
from typing import Any
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
from aiohttp.connector import Connection, TCPConnector
from yarl import URL

from relay.config import UpstreamSettings
from relay.config.tls import context

_GONE = select.POLLIN | getattr(select, "POLLRDHUP", 0)

_Kind = tuple[Path | None, Path | None, float]


class _Connector(TCPConnector):
    """One that looks at a connection before it is used again: its end may have come since the loop last read."""

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        while (found := await super()._get(key, traces)) is not None and _has_ended(found):
            found.close()
        return found


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

    def to(self, upstream: UpstreamSettings) -> aiohttp.ClientSession:
        kind = (upstream.ca_file, upstream.client_cert, upstream.keepalive)
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = self._open(*kind)
        return pool

    @staticmethod
    def _open(ca_file: Path | None, client_cert: Path | None, keepalive: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=_Connector(limit=0, ssl=context(ca_file, client_cert), keepalive_timeout=keepalive),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()


def proxy_for(upstream: UpstreamSettings, url: URL) -> tuple[URL | None, str | None]:
    """The proxy on the way to a URL, and its `Proxy-Authorization` (RFC 9110, section 11.7.2)."""
    address = upstream.proxy
    if address == "off":
        return None, None
    if address == "env":
        proxies = getproxies_environment()
        address = proxies.get(url.scheme) or proxies.get("all", "")
        if not address or proxy_bypass_environment(f"{url.host}:{url.port}", proxies):
            return None, None
    proxy = URL(address if "://" in address else f"http://{address}")
    if proxy.user is None:
        return proxy, None
    shown = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    return proxy.with_user(None), f"Basic {shown}"
