"""The call to an upstream, and its answer's body.

aiohttp's connections under httpx's types: httpx's own pool scans every connection at each request and saturates a core
at 300 streams, and the adapter that exists loses text (see `Body`) and quotes paths anew. Cookies are never
kept: an upstream's cookie for one client would go out with another's request. Redirects are never followed
and nothing is ever sent twice: aiohttp repeats only idempotent methods, and every generation is a POST.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Protocol

import aiohttp
import certifi
import httpx
from yarl import URL

from relay.protocol.errors import UpstreamDisconnected, UpstreamTimeout, UpstreamUnreachable
from relay.protocol.headers import Headers

CONNECT_TIMEOUT = 10.0


class Sink(Protocol):
    """Takes a body as it arrives. Neither may raise."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self, error: httpx.TransportError | None) -> None:
        """Nothing more comes: None at the body's proper end."""


class _Pushing(aiohttp.StreamReader):
    """aiohttp's reader of a body, made to hand out what arrives instead of keeping it until a task asks: that was
    an eighth of the CPU of an event. It is the same object with another class, for aiohttp's parser
    holds on to it; its sink is an attribute of the connection, which serves one body at a time."""

    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:
        self._protocol.relay_sink.data_received(data)  # type: ignore[attr-defined]
        return False

    def begin_http_chunk_receiving(self) -> None:
        pass

    def end_http_chunk_receiving(self) -> None:
        pass

    def feed_eof(self) -> None:
        sink: Sink = self._protocol.relay_sink  # type: ignore[attr-defined]
        self._protocol.relay_sink = None  # type: ignore[attr-defined]  # an idle connection would keep a whole stream
        super().feed_eof()
        sink.eof_received(None)

    def set_exception(self, exc: Any, *cause: Any) -> None:
        over = self._eof or self._exception is not None
        super().set_exception(exc, *cause)
        if not over:
            self._protocol.relay_sink.eof_received(_transport_error(exc))  # type: ignore[attr-defined]


def _transport_error(error: BaseException) -> httpx.TransportError:
    kind = httpx.ReadTimeout if isinstance(error, TimeoutError) else httpx.ReadError
    found = kind(str(error))
    found.__cause__ = error
    return found


class Body(httpx.AsyncByteStream):
    """The raw bytes of a body as they arrive, and all of them: to who iterates, or pushed to a sink.

    aiohttp's reader raises a broken connection's error BEFORE it hands out what had arrived in time, so text
    that a direct client would see is lost whenever this process was busy as the connection died.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def push_to(self, sink: Sink) -> None:
        """From now on, and for what has arrived already, once. Iterate no more. How long it may be silent is the sink's
        to watch: aiohttp sets a timer for every chunk."""
        content = self._response.content
        early = b""
        error = None
        while True:  # where aiohttp had stopped reading, a read makes it go on, and there is more
            if (fault := content.exception()) is not None:
                error = fault
                content.set_exception(None)  # type: ignore[arg-type]
            more = content.read_nowait()
            if not more:
                break
            early += more
        over = content.is_eof()
        if error is None and not over:
            content._protocol.relay_sink = sink  # type: ignore[attr-defined]
            content._protocol.read_timeout = None  # type: ignore[attr-defined]
            content._protocol.start_timeout()  # type: ignore[attr-defined]
            content.__class__ = _Pushing
        if early:
            sink.data_received(early)
        if error is not None:
            sink.eof_received(_transport_error(error))
        elif over:
            sink.eof_received(None)

    def pause(self) -> None:
        """Let the upstream wait. What is on its way may still arrive."""
        if (transport := self._transport()) is not None:
            transport.pause_reading()

    def resume(self) -> None:
        if (transport := self._transport()) is not None:
            transport.resume_reading()

    def _transport(self) -> asyncio.Transport | None:
        """Not aiohttp's protocol, whose pause stops its parser as well: asked for between two reads, that holds back a
        part of the next one for good, unless more arrives."""
        connection = self._response.connection
        return None if connection is None or connection.protocol is None else connection.protocol.transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            async for chunk in content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            content.set_exception(None)  # type: ignore[arg-type]
            rest = content.read_nowait()
            if rest:
                yield rest
            raise _transport_error(error) from error

    async def aclose(self) -> None:
        # Ends the connection unless the body was read to its end: this is how a generation is cancelled.
        self._response.close()


def body_of(response: httpx.Response) -> Body:
    """The body's bytes as they arrive. (httpx's own iterators wrap every chunk several times.)

    Iterating raises httpx.ReadTimeout for an upstream that is silent too long, httpx.ReadError for a broken
    connection; `aclose` ends the call.
    """
    assert isinstance(response.stream, Body)
    return response.stream


def is_event_stream(response: httpx.Response) -> bool:
    kind: str = response.headers.get("content-type", "text/event-stream")
    coding: str = response.headers.get("content-encoding", "identity")
    return kind.split(";")[0].strip().lower() == "text/event-stream" and coding.lower() == "identity"


class UpstreamClient:
    """The one client of a replica. Targets go out exactly as they came: nothing is quoted anew."""

    def __init__(self, idle_timeout: float) -> None:
        self._context = ssl.create_default_context(cafile=certifi.where())
        self._context.load_default_certs()
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=idle_timeout)
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._context, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )

    async def send(self, method: str, url: str, headers: Headers, body: bytes | AsyncIterable[bytes]) -> httpx.Response:
        """The response once its head is there; its body is `body_of(response)`, and it must be closed.

        Raises UpstreamUnreachable where no connection can be had, UpstreamDisconnected where it ends before an answer,
        UpstreamTimeout where the answer does not come within the idle time-out.
        """
        if self._session is None:
            self._session = self._open()
        try:
            response = await self._session.request(
                method,
                URL(url, encoded=True),
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
                data=body,
                allow_redirects=False,
                timeout=self._timeout,
            )
        except aiohttp.SocketTimeoutError:
            raise UpstreamTimeout(
                "The upstream did not answer within streams.upstream_idle_timeout. Try again."
            ) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise UpstreamUnreachable(
                f"The upstream cannot be reached ({type(error).__name__}). Try again; "
                "if it lasts, check the upstream's base_url with `relay check`."
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UpstreamDisconnected(
                f"The upstream closed the connection before it answered ({type(error).__name__}). It had the request "
                "and may charge for it: look there before you send it again."
            ) from error
        return httpx.Response(response.status, headers=response.raw_headers, stream=Body(response))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
