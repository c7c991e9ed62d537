"""The call to an upstream, and its answer's body.

aiohttp's connections under httpx's types: httpx's own pool scans every connection at each request and saturates a core
at 300 streams, and the adapter that exists loses text (see `Body`) and quotes paths anew. Cookies are never
kept: an upstream's cookie for one client would go out with another's request. Redirects are never followed
and nothing is ever sent twice: aiohttp repeats only idempotent methods, and every generation is a POST.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from relay.config import UpstreamSettings
from relay.protocol.codings import Broken, Decoder, Unknown, of_answer
from relay.protocol.errors import UpstreamDisconnected, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from relay.protocol.headers import Headers
from relay.upstream.connections import Connections
from relay.upstream.decoding import Decoding, Sink, Undone, transport_error
from relay.upstream.kept import Answer, Kept

CONNECT_TIMEOUT = 10.0
_PIECE = 64 * 1024
_FIRST_STATUS, _LAST_STATUS = 200, 599  # of an answer's end (RFC 9110, section 15)
# The upstream waits while a client takes a piece that is larger.
_LARGE = 4 * 1024
# With these nothing of a request was sent.
_NOT_CONNECTED = (
    *(aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.ConnectionTimeoutError),
    ValueError,
)


class _Pushing(aiohttp.StreamReader):
    """aiohttp's reader of a body, made to hand out what arrives and keep none, which was an eighth of the CPU of an
    event: the same object with another class, for aiohttp's parser holds it. The connection has its sink."""

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
        if self._exception is None:  # else its connection broke
            sink.eof_received(None)

    def set_exception(self, exc: Any, *cause: Any) -> None:
        over = self._eof or self._exception is not None
        super().set_exception(exc, *cause)
        if not over:
            self._protocol.relay_sink.eof_received(transport_error(exc))  # type: ignore[attr-defined]


async def _in_pieces(body: bytes | AsyncIterable[bytes | memoryview]) -> AsyncIterator[memoryview]:
    """So that each of them shows that the upstream takes it, and others have their turn between two."""
    if isinstance(body, bytes):
        for at in range(0, len(body), _PIECE):
            yield memoryview(body)[at : at + _PIECE]
            await asyncio.sleep(0)
    else:
        async for part in body:
            for at in range(0, len(part), _PIECE):
                yield memoryview(part)[at : at + _PIECE]
                await asyncio.sleep(0)
            part = b""  # while the next one is waited for, and once the last one is sent


class Body(httpx.AsyncByteStream):
    """The raw bytes of a body as they arrive, and all of them: to who iterates, or pushed to a sink.

    aiohttp's reader raises a broken connection's error BEFORE it hands out what had arrived in time, so text
    that a direct client would see is lost whenever this process was busy as the connection died.

    `grace` is for how many seconds more than its upstream's limits say it may be silent: it is being gone on with.
    `ends_with_connection`: nothing but the connection's end says where it ends.
    """

    grace = 0.0
    ends_with_connection = False

    def __init__(self, response: aiohttp.ClientResponse | Answer, decoders: list[Decoder] | None = None) -> None:
        """`decoders` take its codings off; None where the first bytes of an event stream tell which those are."""
        self._response = response
        self._decoders = decoders
        self.ends_with_connection = _ends_with_connection(response)

    def push_to(self, sink: Sink) -> None:
        """From now on, and for what has arrived already, once. Iterate no more. How long it may be silent is the sink's
        to watch: aiohttp sets a timer for every chunk."""
        content = self._response.content
        if self._decoders != []:
            sink = Decoding(sink, self._decoders, self._hand_to)
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
            content._buffer, content._http_chunk_splits = (), None  # type: ignore[assignment]
        if early:
            sink.data_received(early)
        if error is not None:
            sink.eof_received(transport_error(error))
        elif over:
            sink.eof_received(None)

    def _hand_to(self, sink: Sink) -> None:
        protocol = self._response.content._protocol
        if getattr(protocol, "relay_sink", None) is not None:
            protocol.relay_sink = sink  # type: ignore[attr-defined]

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
        if self._decoders == []:
            async for chunk in self._raw():
                yield chunk
            return
        decoding = Undone(self._decoders)
        async for chunk in self._raw():
            try:
                for piece in decoding.feed(chunk):
                    yield piece
            except Broken as error:
                raise transport_error(error) from error
        if rest := decoding.rest():
            yield rest

    async def _raw(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            async for chunk in content.iter_any():
                if len(chunk) <= _LARGE:
                    yield chunk
                    continue
                self._hold()
                yield chunk
                self._go_on()
        except (aiohttp.ClientError, OSError) as error:
            content.set_exception(None)  # type: ignore[arg-type]
            rest = content.read_nowait()
            if rest:
                yield rest
            raise transport_error(error) from error

    def _hold(self) -> None:
        """Read nothing while nobody asks for more: one read may bring 256 KiB. The wait is none of the upstream's."""
        if (connection := self._response.connection) is not None and connection.protocol is not None:
            self.pause()
            connection.protocol._drop_timeout()

    def _go_on(self) -> None:
        if (connection := self._response.connection) is not None and connection.protocol is not None:
            connection.protocol.start_timeout()
            self.resume()

    async def aclose(self) -> None:
        # Ends the connection unless the body was read to its end: this is how a generation is cancelled.
        self._response.close()
        # Else what nobody reads any more stays until the collector comes. Of an answer without a body there is none.
        with suppress(AttributeError):
            self._response.content._buffer.clear()


def body_of(response: httpx.Response) -> Body:
    """The body's bytes as they arrive. (httpx's own iterators wrap every chunk several times.)

    Iterating raises httpx.ReadTimeout for an upstream that is silent too long, httpx.ReadError for a broken
    connection; `aclose` ends the call.
    """
    assert isinstance(response.stream, Body)
    return response.stream


def is_event_stream(response: httpx.Response) -> bool:
    """One that the relay can read: its codings are taken off, but for those that it does not know."""
    kind: str = response.headers.get("content-type", "text/event-stream")
    first = kind.replace(",", ";").split(";")[0]  # some gateways say it twice
    return first.strip().lower() == "text/event-stream" and "content-encoding" not in response.headers


def _ends_with_connection(response: aiohttp.ClientResponse | Answer) -> bool:
    """Does nothing but the end of its connection say where an answer's body ends (RFC 9112, section 6.3)?"""
    return "content-length" not in response.headers and "transfer-encoding" not in response.headers


def _undone(response: aiohttp.ClientResponse | Answer) -> tuple[list[tuple[bytes, bytes]], list[Decoder] | None]:
    """The head of an answer as it is once its body's codings are taken off, and what takes them off (see `Body`). That
    is so for event streams only: all else goes to its client as it is."""
    head = list(response.raw_headers)
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "text/event-stream":
        return head, []
    listed = of_answer(response.headers.get("content-encoding"))
    try:
        decoders = [Decoder(coding) for coding in listed]
    except Unknown:
        return head, []
    gone = (b"content-encoding", b"content-length") if listed else (b"content-encoding",)
    return [item for item in head if item[0].lower() not in gone], decoders or None


def _malformed(what: str) -> UpstreamMalformed:
    return UpstreamMalformed(
        f"What the upstream sent {what}. Check the upstream's base_url with `relay check`, and what stands before it. "
        "It may have generated all the same, so another try may be paid for twice.",
        headers={"x-should-retry": "false"},
    )


class UpstreamClient:
    """The one client of a replica. Targets go out exactly as they came: nothing is quoted anew."""

    def __init__(self) -> None:
        self.relays: set[str] = set()
        """The base URLs of upstreams whose answers have said that they are relays."""
        self._connections = Connections()
        self._kept = Kept()

    async def send(
        self,
        upstream: UpstreamSettings,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | AsyncIterable[bytes | memoryview],
        *,
        answer: tuple[str, float] = ("upstream_answer_timeout", 120.0),
        idle: float = 300.0,
    ) -> httpx.Response:
        """The response once its head is there; its body is `body_of(response)`, and it must be closed.

        `answer` is the setting that says how long the head may take once the request is sent, and its seconds; `idle`
        is how long the body may be silent then.

        Raises UpstreamUnreachable where no connection was had, UpstreamDisconnected where it ended before an answer,
        UpstreamTimeout where the answer does not come in time, UpstreamMalformed where it is none of HTTP (RFC 9110,
        section 15).
        """
        address = URL(url, encoded=True)
        proxy, authorization = self._connections.proxy_for(upstream, address)
        setting, seconds = answer
        limit = None if seconds == float("inf") else seconds
        response: aiohttp.ClientResponse | Answer | None = None
        try:
            if method == "POST" and proxy is None and isinstance(body, bytes) and len(body) <= _PIECE:
                response = await self._kept.ask(self._connections.of(upstream), address, headers, body, limit)
            if response is None:
                to_proxy = {} if authorization is None else {"proxy-authorization": authorization}
                lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
                if address.scheme == "http":  # there is no CONNECT: the request itself goes to the proxy
                    lines += to_proxy.items()
                response = await self._connections.to(upstream).request(
                    method,
                    address,
                    proxy=proxy,
                    proxy_headers=to_proxy,
                    headers=lines,
                    data=body if isinstance(body, bytes) and len(body) <= _PIECE else _in_pieces(body),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=limit),
                )
        except aiohttp.SocketTimeoutError:
            raise UpstreamTimeout(
                f"The upstream did not answer within {setting} ({seconds:g} s). It may have generated all the same, so "
                "another try may be paid for twice; if answers take so long, raise the limit."
            ) from None
        except _NOT_CONNECTED as error:
            self._connections.look_up_again(upstream, proxy or address)
            raise UpstreamUnreachable(
                f"The upstream cannot be reached ({type(error).__name__}). Try again; "
                "if it lasts, check the upstream's base_url with `relay check`."
            ) from error
        except (aiohttp.ClientResponseError, HttpProcessingError) as error:
            raise _malformed("is no head of an HTTP answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamDisconnected(
                f"The upstream's connection ended before its answer ({type(error).__name__}). It may have generated "
                "all the same, so another try may be paid for twice."
            ) from error
        if not _FIRST_STATUS <= response.status <= _LAST_STATUS:
            response.close()
            raise _malformed(f"has the status {response.status:03}, which ends no answer")
        if response.connection is not None and (protocol := response.connection.protocol) is not None:
            protocol.read_timeout = idle
            protocol.start_timeout()
        head, decoders = _undone(response)
        if isinstance(response, aiohttp.ClientResponse):  # what was sent is not held as long as the answer
            response._request_info = None  # type: ignore[assignment]
        return httpx.Response(response.status, headers=head, stream=Body(response, decoders))

    async def close(self) -> None:
        await self._connections.close()
