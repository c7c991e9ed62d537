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
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection, TCPConnector
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from relay.config import UpstreamSettings
from relay.config.tls import context
from relay.protocol.errors import UpstreamUnreachable
from relay.upstream.no_proxy import is_direct

# Of a body that its client does not take; aiohttp reads on to twice as much, and its own default is 256 KiB.
READ_AHEAD = 16 * 1024
MAX_LINE = 64 * 1024
# How long a time-out that is due waits for what has arrived in time and was not read yet.
READ_FIRST = 0.1
# Heads (1xx) before an answer's own. Each puts off its time-out, and aiohttp queues as many as come.
_INTERIM = 64
_GONE = select.POLLIN | getattr(select, "POLLRDHUP", 0)

_Kind = tuple[Path | None, Path | None, float]


class _Few(list[Any]):
    """In the place of a deque, which holds 700 bytes while it is empty: a connection has one head or none here."""

    __slots__ = ()

    def popleft(self) -> Any:
        return self.pop(0)


class _Handler(ResponseHandler):
    """aiohttp's connection, whose time-out begins when the request is sent, with four differences. An upstream that
    takes none of a request is as silent as one that does not answer. A process that was stopped does not take its
    pause for the upstream's: it wakes up to its timers, and what has happened meanwhile is read first. An answer
    that only ever announces itself is none. And a body without a length, which ends with its connection, is not whole
    where that broke."""

    _sent = False
    _interim = 0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._buffer = _Few()  # type: ignore[assignment]

    def set_response_params(self, **params: Any) -> None:
        self._sent = False
        self._interim = 0
        super().set_response_params(**params)

    def start_timeout(self) -> None:
        self._sent = True
        super().start_timeout()

    def feed_data(self, data: Any, size: int = 0) -> None:
        self._interim += data[0].code < 200
        if self._interim <= _INTERIM:
            super().feed_data(data, size)
        elif self.exception() is None:
            self.set_exception(HttpProcessingError(code=400, message="too many interim answers"))
            if self.transport is not None:
                self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        payload = self._payload
        if exc is not None and payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError(f"The connection broke within a body: {exc!r}"))
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        super().start_timeout()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sent:
            super().start_timeout()
        else:
            self._drop_timeout()

    def _on_read_timeout(self) -> None:
        self._read_timeout_handle = self._loop.call_later(READ_FIRST, super()._on_read_timeout)


class Connector(TCPConnector):
    """One that looks at a connection before it is used again: its end may have come since the loop last read."""

    async def take(self, key: ConnectionKey) -> Connection | None:
        """One that is kept, None where there is none."""
        return await self._get(key, [])

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
        connector._factory = partial(_Handler, asyncio.get_running_loop())  # type: ignore[assignment]
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_AHEAD,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
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
