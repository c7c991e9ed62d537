"""What the relay does not stream itself is passed through both ways, streamed, status and body unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence

import httpx
import orjson

from relay.api import kept, passed_events
from relay.api.exchange import Exchange
from relay.api.models import list_models
from relay.api.outgoing import upstream_request
from relay.api.services import Services
from relay.http.contract import ConnectionCut
from relay.protocol import headers as rules
from relay.protocol.apis import api_label
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import UpstreamDisconnected, UpstreamUnreachable
from relay.upstream.client import body_of, is_event_stream
from relay.upstream.failover import ask
from relay.upstream.routing import Route, route_path

# A body has no meaning with these (RFC 9110, section 9.3): an upstream that does not read it takes it for the next
# request of the connection, which is another client's.
_BODILESS = ("GET", "HEAD")
# A file's content may be a page; opened at this origin it could read what the playground keeps there.
_NO_PAGE = (b"content-security-policy", b"sandbox")


async def any_path(services: Services, exchange: Exchange, *, own: bool = False) -> None:
    """Every other path under /v1/. A JSON body's model decides the upstream, else the path's API does. `own`: what the
    path names is known to be the caller's."""
    path = exchange.scope["path"]
    caller = exchange.caller
    if not own:
        caller.check_path(exchange.method, path, exchange.target)
    if exchange.method == "GET" and path == "/v1/models" and caller.restricted:
        await list_models(services, exchange)
        return
    anthropic = exchange.header(b"anthropic-version") is not None
    kind = (exchange.header(b"content-type") or "").split(";")[0].strip().lower()
    if exchange.method in ("POST", "PUT", "PATCH") and kind == "application/json":
        raw, body = await exchange.json(services.settings.limits.body, empty=True)
        await kept.check(services, exchange, await kept.look(exchange, body))
        model = body.get("model")
        if isinstance(model, str) and model:
            route = caller.route(services.settings.upstreams, None, model, body)
            if route.model != model or caller.is_checked:
                raw = orjson.dumps({**body, "model": route.model})
        else:
            caller.check_unnamed(path)
            raw = orjson.dumps(body) if caller.is_checked and raw else raw
            route = route_path(services.settings.upstreams, path, anthropic=anthropic)
        await forward(services, exchange, route, raw, incremental=_asks_for_events(body))
        return
    await kept.check(services, exchange, await kept.look(exchange, {}))
    if not own and exchange.method not in ("GET", "HEAD", "DELETE"):
        if exchange.has_body():
            caller.check_unread(path)
        caller.check_unnamed(path)
    route = route_path(services.settings.upstreams, path, anthropic=anthropic)
    await forward(services, exchange, route, exchange.chunks())


def _asks_for_events(body: JsonObject) -> bool:
    """In one of the ways that OpenAI's API knows."""
    return body.get("stream") is True or body.get("stream_format") == "sse"


async def forward(
    services: Services,
    exchange: Exchange,
    route: Route,
    body: bytes | AsyncIterable[bytes],
    *,
    incremental: bool = False,
) -> None:
    """`incremental`: the request asks for events."""
    slot = services.gate.acquire(exchange.caller)
    try:
        await _forward(services, exchange, route, body, incremental)
    finally:
        slot.release()


async def _forward(
    services: Services, exchange: Exchange, route: Route, body: bytes | AsyncIterable[bytes], incremental: bool
) -> None:
    if not isinstance(body, bytes) and (exchange.method in _BODILESS or not exchange.has_body()):
        await exchange.discard_body()
        exchange.headers = [item for item in exchange.headers if item[0] != b"content-length"]
        body = b""
    try:
        route, response = await exchange.unless_gone(_answer(services, exchange, route, body, incremental))
    except (UpstreamDisconnected, UpstreamUnreachable) as error:
        raise exchange.too_slow or error from None
    more = route.upstream.headers
    kind = response.headers.get("content-type")
    # While its body is still on its way up, nobody else may read the client's connection.
    if (
        response.status_code == 200
        and exchange.method != "HEAD"
        and exchange.body_read
        and kind
        and is_event_stream(response)
    ):
        meter = services.metrics.meter(_label(exchange), route.upstream.name, route.pattern)
        try:
            await passed_events.deliver(exchange, response, more, meter, services.settings)
        finally:
            await body_of(response).aclose()
    else:
        await relay_response(exchange, response, more)


async def _answer(
    services: Services, exchange: Exchange, route: Route, body: bytes | AsyncIterable[bytes], incremental: bool
) -> tuple[Route, httpx.Response]:
    """A body that is passed on as it comes cannot be sent again."""
    incremental = incremental or "text/event-stream" in (exchange.header(b"accept") or "")

    async def send(at: Route) -> httpx.Response:
        data = body
        if at is not route and isinstance(body, bytes):
            data = orjson.dumps({**orjson.loads(body), "model": at.model})
        length = len(data) if data and isinstance(data, bytes) else None
        request = upstream_request(
            services, exchange, at, _label(exchange), identity=False, incremental=incremental, length=length
        )
        return await request.send(data)

    return await ask(route, send) if isinstance(body, bytes) else (route, await send(route))


def _label(exchange: Exchange) -> str:
    return api_label(exchange.scope["path"])


async def relay_response(exchange: Exchange, response: httpx.Response, more: Sequence[str]) -> None:
    """An upstream's answer to the client as it is: an answer that breaks off breaks off here too. `more` are patterns
    of further headers that come back with it."""
    try:
        await exchange.unless_gone(_relay_body(exchange, response, more))
    finally:
        await body_of(response).aclose()
    await exchange.end()


async def _relay_body(exchange: Exchange, response: httpx.Response, more: Sequence[str]) -> None:
    await exchange.start(response.status_code, [*rules.to_client(response.headers.raw, more), _NO_PAGE])
    send = exchange.sender()
    try:
        async for chunk in body_of(response):
            await send(chunk)
    except httpx.HTTPError:
        raise ConnectionCut from None
