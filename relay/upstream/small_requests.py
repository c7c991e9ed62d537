"""A request of some bytes that goes straight to its upstream, which is most of a stream's.

aiohttp's session makes a request, a writer, a task that writes and an answer for each, with its headers as text. Here
the head is written as the bytes that it has, in one piece with the body, on a connection of aiohttp's: one that is
kept, or a new one. Nothing is sent twice.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from relay.protocol.headers import Headers, lines_of
from relay.upstream.connections import CONNECT_TIMEOUT, Connector
from relay.upstream.content import Content
from relay.upstream.reading import Handler, Head

_DIAL = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)


class SmallRequests:
    """One per replica."""

    def __init__(self) -> None:
        self._addresses: dict[tuple[str, str | None, int | None], tuple[aiohttp.ClientRequest, ConnectionKey]] = {}

    async def post(
        self, connector: Connector, address: URL, headers: Headers, body: bytes, seconds: float | None
    ) -> tuple[Head, Content, Connection]:
        """The answer once its head is there, and what has its connection. `seconds` is how long the head may take once
        the request is sent. Raises as aiohttp does, HttpProcessingError for what is no answer, and ValueError for
        headers that cannot be sent."""
        lines = [(b"host", (address.host_port_subcomponent or "").encode()), *headers]
        if b"content-length" not in dict(headers):
            lines.append((b"content-length", b"%d" % len(body)))
        request = b"POST %b HTTP/1.1\r\n%b\r\n%b" % (address.raw_path_qs.encode(), lines_of(lines), body)
        connection = await self._connection(connector, address)
        protocol = connection.protocol
        assert isinstance(protocol, Handler)
        try:
            head, content = await protocol.ask(request, seconds)
        except BaseException:
            connection.close()
            raise
        content.on_eof(connection.release)
        return head, content, connection

    async def _connection(self, connector: Connector, address: URL) -> Connection:
        """aiohttp asks for a request where it dials, and names a pool's connections by it: there are no more of them
        than upstreams."""
        name = (address.scheme, address.host, address.port)
        found = self._addresses.get(name)
        if found is None:
            request = aiohttp.ClientRequest("POST", address, loop=asyncio.get_running_loop())
            found = self._addresses[name] = request, request.connection_key
        kept = await connector._get(found[1], [])
        if kept is not None:
            return kept
        try:
            return await connector.connect(found[0], [], _DIAL)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
