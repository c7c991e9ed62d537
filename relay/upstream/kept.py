"""A request of some bytes on a connection that is kept, which is where most of a stream's requests go.

aiohttp's session makes a request, a writer, a task that writes and an answer for each, with its headers as text; here
the head is written as the bytes that it has, in one piece with the body, and what is read is aiohttp's as it is. So all
that must be careful stays in one place: the pool, its parser and its time-outs. Nothing is sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from relay.protocol.headers import Headers, lines_of
from relay.upstream.connections import MAX_LINE, READ_AHEAD, Connector

_CLOSED = "Connection closed"


class Answer:
    """What is asked of an aiohttp answer: its head, where its body comes from, and its end."""

    status: int
    raw_headers: tuple[tuple[bytes, bytes], ...]
    headers: Mapping[str, str]
    content: aiohttp.StreamReader

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection | None = connection

    async def read_head(self) -> None:
        """Raises what reading from the connection does, HttpProcessingError for what is no head."""
        assert self.connection is not None
        protocol = self.connection.protocol
        assert protocol is not None
        while True:
            message, body = await protocol.read()
            if message.code >= 200 or message.code < 100 or message.code == 101:
                break
        self.status = message.code
        self.raw_headers = message.raw_headers
        self.headers = message.headers
        self.content = body
        body.on_eof(self._ended)

    def _ended(self) -> None:
        """The connection may serve the next request."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.release()

    def close(self) -> None:
        """Ends the connection unless the body was read to its end."""
        if self.content.exception() is None:
            self.content.set_exception(aiohttp.ClientConnectionError(_CLOSED))
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class Kept:
    """Asks on kept connections. One per replica."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str | None, int | None], ConnectionKey] = {}

    async def ask(
        self, connector: Connector, address: URL, headers: Headers, body: bytes, seconds: float | None
    ) -> Answer | None:
        """The answer to a POST once its head is there; None where no connection is kept, and nothing was sent.
        `seconds` is how long the head may take. Raises as aiohttp does, HttpProcessingError for what is no answer."""
        connection = await connector.take(self._key(address))
        if connection is None:
            return None
        protocol = connection.protocol
        assert protocol is not None
        try:
            head = [(b"host", (address.host_port_subcomponent or "").encode("ascii")), *headers]
            if not any(name == b"content-length" for name, _ in headers):
                head.append((b"content-length", b"%d" % len(body)))
            lines = lines_of(head)
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                read_timeout=seconds,
                read_bufsize=READ_AHEAD,
                max_line_size=MAX_LINE,
                max_field_size=MAX_LINE,
            )
            assert protocol.transport is not None
            protocol.transport.write(
                b"POST %b HTTP/1.1\r\n%b\r\n%b" % (address.raw_path_qs.encode("ascii"), lines, body)
            )
            protocol.start_timeout()
            answer = Answer(connection)
            await answer.read_head()
        except BaseException:
            connection.close()
            raise
        return answer

    def _key(self, address: URL) -> ConnectionKey:
        """As aiohttp names a pool's connections; there are no more than upstreams."""
        name = (address.scheme, address.host, address.port)
        key = self._keys.get(name)
        if key is None:
            request = aiohttp.ClientRequest("POST", address, loop=asyncio.get_running_loop())
            key = self._keys[name] = request.connection_key
        return key
