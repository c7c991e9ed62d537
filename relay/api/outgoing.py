"""A request on its way upstream: its url, its headers as they cross, how it is counted, and its bytes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

import httpx

from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.config import UpstreamSettings
from relay.metrics import Meter
from relay.protocol import headers as rules
from relay.protocol.errors import ApiError
from relay.protocol.headers import Headers
from relay.upstream.client import UpstreamClient
from relay.upstream.routing import Route


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

    async def send(self, body: bytes | AsyncIterable[bytes]) -> httpx.Response:
        """The upstream's answer, counted. Raises as `UpstreamClient.send` does."""
        try:
            response = await self.client.send(self.upstream, self.method, self.url, self.headers, body)
        except ApiError as error:
            self.meter.upstream_answered("timeout" if error.status == 504 else "unreachable")
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
) -> UpstreamRequest:
    """The client's request as it goes to the upstream of a route.

    `api` is the API's name in metrics, `identity` asks for an answer that is not compressed, `incremental` for an event
    stream, `length` is the body's in bytes where it is known, and `headers` stand for the client's own where some of
    these are not to cross.
    """
    upstream = route.upstream
    crossing = rules.to_upstream(
        exchange.headers if headers is None else headers,
        api_key=upstream.api_key(),
        identity=identity,
        length=length,
        request_id=exchange.request_id,
        more=upstream.headers,
        incremental=incremental,
    )
    url = route.url(exchange.target + (f"?{exchange.query}" if exchange.query else ""))
    return UpstreamRequest(
        services.upstreams,
        upstream,
        services.metrics.meter(api, upstream.name, route.pattern),
        exchange.method,
        url,
        crossing,
    )
