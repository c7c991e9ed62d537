"""The call to an upstream, and its answer's body.

aiohttp's connections with httpx's errors: httpx's own pool scans every connection at each request and saturates a core
at 300 streams. Cookies are never kept: an upstream's cookie for one client would go out with another's request.
Redirects are never followed and nothing is ever sent twice: aiohttp repeats only idempotent methods, and every
generation is a POST.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from relay.config import UpstreamSettings
from relay.protocol.codings import Broken, Decoder, Unknown, of_answer
from relay.protocol.errors import UpstreamDisconnected, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from relay.protocol.headers import Headers
from relay.upstream.answer_headers import AnswerHeaders
from relay.upstream.connections import CONNECT_TIMEOUT, Connections
from relay.upstream.content import Content
from relay.upstream.decoding import Decoding, Sink, Undone, transport_error
from relay.upstream.reading import Head
from relay.upstream.small_requests import SmallRequests

_PIECE = 64 * 1024
_FIRST_STATUS, _LAST_STATUS = 200, 599  # of an answer's end (RFC 9110, section 15)
# With these nothing of a request was sent.
_NOT_CONNECTED = (
    *(aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.ConnectionTimeoutError),
    ValueError,
)


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


class Body:
    """The raw bytes of a body as they arrive, and all of them: to who iterates, or pushed to a sink.

    `grace` is for how many seconds more than its upstream's limits say it may be silent: it is being gone on with.
    `ends_with_connection`: nothing but the connection's end says where it ends.
    """

    grace = 0.0
    ends_with_connection = False

    def __init__(self, content: Content, decoders: list[Decoder] | None = None) -> None:
        """`decoders` take its codings off; None where the first bytes of an event stream tell which those are."""
        self._content = content
        self._decoders = decoders
        self.ends_with_connection = not content.bounded

    def push_to(self, sink: Sink) -> None:
        """From now on, and for what has arrived already, once. Iterate no more. How long it may be silent is the sink's
        to watch."""
        if self._decoders != []:
            sink = Decoding(sink, self._decoders, self._content.hand_to)
        self._content.push_to(sink)

    def pause(self) -> None:
        """Let the upstream wait. What is on its way may still arrive."""
        self._content.pause()

    def resume(self) -> None:
        self._content.resume()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._decoders == []:
            async for chunk in self._content.pieces():
                yield chunk
            return
        decoding = Undone(self._decoders)
        async for chunk in self._content.pieces():
            try:
                for piece in decoding.feed(chunk):
                    yield piece
            except Broken as error:
                raise transport_error(error) from error
        if rest := decoding.rest():
            yield rest

    async def aclose(self) -> None:
        """Ends the connection unless the body was read to its end: this is how a generation is cancelled."""
        self._content.close()


@dataclass(slots=True)
class Response:
    """An upstream's answer, whose body is on its way."""

    status_code: int
    headers: AnswerHeaders
    stream: Body

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code <= 299


def body_of(response: Response) -> Body:
    """The body's bytes as they arrive.

    Iterating raises httpx.ReadTimeout for an upstream that is silent too long, httpx.ReadError for a broken
    connection; `aclose` ends the call.
    """
    return response.stream


def is_event_stream(response: Response) -> bool:
    """One that the relay can read: its codings are taken off, but for those that it does not know."""
    kind = response.headers.get("content-type", "text/event-stream")
    first = kind.replace(",", ";").split(";")[0]  # some gateways say it twice
    return first.strip().lower() == "text/event-stream" and "content-encoding" not in response.headers


def _undone(headers: AnswerHeaders) -> tuple[AnswerHeaders, list[Decoder] | None]:
    """The head of an answer as it is once its body's codings are taken off, and what takes them off (see `Body`). That
    is so for event streams only: all else goes to its client as it is."""
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "text/event-stream":
        return headers, []
    given = headers.get("content-encoding")
    if given is None:
        return headers, None
    listed = of_answer(given)
    try:
        decoders = [Decoder(coding) for coding in listed]
    except Unknown:
        return headers, []
    gone = (b"content-encoding", b"content-length") if listed else (b"content-encoding",)
    return AnswerHeaders([item for item in headers.raw if item[0] not in gone]), decoders or None


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
        self._small = SmallRequests()

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
    ) -> Response:
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
        owner: Connection | aiohttp.ClientResponse
        try:
            if method == "POST" and proxy is None and isinstance(body, bytes) and len(body) <= _PIECE:
                connector = self._connections.of(upstream)
                head, content, owner = await self._small.post(connector, address, headers, body, limit)
            else:
                through = proxy, authorization
                head, content, owner = await self._request(upstream, method, address, headers, body, through, limit)
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
        content.begin(owner, idle)
        if not _FIRST_STATUS <= head.code <= _LAST_STATUS:
            content.close()
            raise _malformed(f"has the status {head.code:03}, which ends no answer")
        known, decoders = _undone(AnswerHeaders(head.raw_headers))
        return Response(head.code, known, Body(content, decoders))

    async def _request(
        self,
        upstream: UpstreamSettings,
        method: str,
        address: URL,
        headers: Headers,
        body: bytes | AsyncIterable[bytes | memoryview],
        through: tuple[URL | None, str | None],
        limit: float | None,
    ) -> tuple[Head, Content, aiohttp.ClientResponse]:
        """By aiohttp's session. `through` is a proxy with its authorization."""
        proxy, authorization = through
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
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=3 * CONNECT_TIMEOUT,  # to a proxy, its word that the tunnel stands, and TLS
                sock_connect=CONNECT_TIMEOUT,
                sock_read=limit,
            ),
        )
        response._request_info = None  # type: ignore[assignment]  # what was sent is not held as long as the answer
        content: Any = response.content
        return Head(response.status, list(response.raw_headers)), content, response

    async def close(self) -> None:
        await self._connections.close()
