"""A request on its way upstream: its url, its headers as they cross, how it is counted, and its bytes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

import httpx

from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.config import Timeouts, UpstreamSettings
from relay.metrics import Meter
from relay.protocol import credentials
from relay.protocol import headers as rules
from relay.protocol.errors import ApiError, UpstreamDisconnected, UpstreamTimeout, UpstreamUnreachable
from relay.protocol.headers import Headers
from relay.upstream.client import UpstreamClient
from relay.upstream.resuming import StreamRequest
from relay.upstream.routing import Route

# A body up to this size goes out in one write with its head, and is let go of at the upstream's answer.
_SMALL_BODY = 16 * 1024
_NO_ANSWER = {UpstreamUnreachable: "unreachable", UpstreamDisconnected: "disconnected", UpstreamTimeout: "timeout"}


class RequestBody:
    """The bytes of a request: whoever takes them is the only one that holds them."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def take(self) -> bytes:
        data, self._data = self._data, b""
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.take()


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """All of a request but its body."""

    client: UpstreamClient
    upstream: UpstreamSettings
    meter: Meter
    method: str
    url: str
    headers: Headers
    answer: tuple[str, float]
    """The setting that says how long the answer may take, and its seconds."""
    timeouts: Timeouts

    async def stream(self, body: RequestBody, api: str, key: str, *, background: bool) -> httpx.Response:
        """The answer to a request for a stream, which goes on after a loss where the upstream can do that. `key` names
        this generation and no other. Raises as `UpstreamClient.send` does."""
        upstream = self.upstream
        joins = upstream.resume == "auto" and upstream.base_url in self.client.relays
        kept = body.take() if joins or upstream.resume == "last-event-id" or body.size <= _SMALL_BODY else b""
        sent = StreamRequest(
            upstream,
            self.timeouts,
            api,
            self.url,
            self.headers,
            self._ask,
            key,
            self.meter.upstream_resumed,
            background,
        )
        response = await (sent.joining(kept) if joins else self.send(kept or body))
        resumable = sent.resumable(response, kept if upstream.resume == "last-event-id" else b"")
        if resumable is not response and upstream.resume == "auto":
            self.client.relays.add(upstream.base_url)
        return resumable

    async def _ask(self, method: str, url: str, headers: Headers, body: bytes) -> httpx.Response:
        """One request that generates nothing of its own."""
        return await self.client.send(
            self.upstream, method, url, headers, body, answer=self.answer, idle=self.timeouts.upstream_idle_timeout
        )

    async def send(self, body: bytes | AsyncIterable[bytes]) -> httpx.Response:
        """The upstream's answer, counted. Raises as `UpstreamClient.send` does."""
        idle = self.timeouts.upstream_idle_timeout
        try:
            response = await self.client.send(
                self.upstream, self.method, self.url, self.headers, body, answer=self.answer, idle=idle
            )
        except ApiError as error:
            self.meter.upstream_answered(_NO_ANSWER.get(type(error), "other"))
            raise
        self.meter.upstream_answered(response.status_code)
        return response


def upstream_request(
    services: Services,
    exchange: Exchange,
    route: Route,
    api: str,
    *,
    identity: bool,
    length: int | None,
    incremental: bool = False,
    headers: Headers | None = None,
    streamed: bool = False,
) -> UpstreamRequest:
    """The client's request as it goes to the upstream of a route.

    `api` is the API's name in metrics, `identity` asks for an answer that is not compressed, `incremental` for an event
    stream, `length` is the body's in bytes where it is known, `headers` stand for the client's own where some of these
    are not to cross, and `streamed` is True where a stream is asked for.
    """
    upstream = route.upstream
    timeouts = upstream.timeouts(services.settings.streams)
    own_key, query = upstream.api_key(), exchange.query
    if own_key is not None and query:
        query = credentials.without_credentials(
            query, exchange.caller.shown if exchange.caller.key is not None else b""
        )
    crossing = rules.to_upstream(
        exchange.headers if headers is None else headers,
        api_key=own_key,
        identity=identity,
        length=length,
        request_id=exchange.request_id,
        more=upstream.headers,
        incremental=incremental,
    )
    url = route.url(exchange.target + (f"?{query}" if query else ""))
    return UpstreamRequest(
        services.upstreams,
        upstream,
        services.metrics.meter(api, upstream.name, route.pattern),
        exchange.method,
        url,
        crossing,
        _answer_limit(timeouts, streamed=streamed),
        timeouts,
    )


def _answer_limit(timeouts: Timeouts, *, streamed: bool) -> tuple[str, float]:
    names = ("upstream_answer_timeout", "first_token_timeout") if streamed else ("unstreamed_answer_timeout",)
    return min(((name, getattr(timeouts, name)) for name in names), key=lambda limit: limit[1])
