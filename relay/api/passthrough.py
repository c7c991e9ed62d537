"""What the relay does not stream itself is passed through both ways, streamed, status and body unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence

import httpx

from relay.api import kept, passed_events
from relay.api.exchange import Exchange
from relay.api.models import is_one_s_own, list_models, of_model
from relay.api.outgoing import ClientBody, RequestBody, is_name, upstream_request
from relay.api.services import Services
from relay.http.contract import ConnectionCut
from relay.protocol import headers as rules
from relay.protocol.apis import api_label
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import UpstreamDisconnected, UpstreamUnreachable
from relay.upstream.client import Response, body_of, is_event_stream
from relay.upstream.failover import ask
from relay.upstream.routing import Route, route_path

# A body has no meaning with these (RFC 9110, section 9.3): an upstream that does not read it takes it for the next
# request of the connection, which is another client's.
_BODILESS = ("GET", "HEAD")
# A file's content may be a page; opened at this origin it could read what the playground keeps there.
_NO_PAGE = (b"content-security-policy", b"sandbox")


_Outgoing = ClientBody | RequestBody | AsyncIterable[bytes]


async def any_path(services: Services, exchange: Exchange, *, own: bool = False) -> None:
    """Every other path under /v1/. A JSON body's model decides the upstream, else the path's API does. `own`: what the
    path names is known to be the caller's."""
    path = exchange.scope["path"]
    caller = exchange.caller
    if not own:
        caller.check_path(exchange.method, path, exchange.target)
    if exchange.method == "GET" and path == "/v1/models" and not is_one_s_own(exchange, services.settings.upstreams):
        await list_models(services, exchange)
        return
    with services.gate.acquire(exchange.caller):  # before a body is read
        kind = (exchange.header(b"content-type") or "").split(";")[0].strip().lower()
        if exchange.method in ("POST", "PUT", "PATCH") and kind == "application/json":
            route, body, incremental = await _read(services, exchange)
            await forward(services, exchange, route, body, incremental=incremental)
            return
        await kept.check(services, exchange, await kept.look(exchange, {}))
        if not own and exchange.method not in ("GET", "HEAD", "DELETE"):
            if exchange.has_body():
                caller.check_unread(path)
            caller.check_unnamed(path)
        await forward(services, exchange, _route_path(services, exchange), exchange.chunks())


async def _read(services: Services, exchange: Exchange) -> tuple[Route, ClientBody, bool]:
    raw, body = await exchange.json(services.bodies, empty=True)
    named = await kept.look(exchange, body)
    model = body.get("model")
    incremental = _asks_for_events(body)
    if is_name(model):
        route = exchange.caller.route(services.settings.upstreams, None, model, body)
    else:
        exchange.caller.check_unnamed(exchange.scope["path"])
        route, model = _route_path(services, exchange), None
    del body
    await kept.check(services, exchange, named)
    return route, ClientBody(exchange, raw, model), incremental


def _route_path(services: Services, exchange: Exchange) -> Route:
    anthropic = exchange.header(b"anthropic-version") is not None
    if (found := of_model(exchange, services.settings.upstreams, anthropic=anthropic)) is not None:
        return found
    return route_path(services.settings.upstreams, exchange.scope["path"], anthropic=anthropic)


def _asks_for_events(body: JsonObject) -> bool:
    """In one of the ways that OpenAI's API knows."""
    return body.get("stream") is True or body.get("stream_format") == "sse"


async def forward(
    services: Services,
    exchange: Exchange,
    route: Route,
    body: _Outgoing,
    *,
    incremental: bool = False,
) -> None:
    """For a caller who has been let upstream. `incremental`: the request asks for events."""
    if not isinstance(body, ClientBody | RequestBody) and (exchange.method in _BODILESS or not exchange.has_body()):
        await exchange.discard_body()
        exchange.take_headers([item for item in exchange.headers if item[0] != b"content-length"])
        body = RequestBody()
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
        meter = route.meter(services.metrics, _label(exchange))
        try:
            await passed_events.deliver(exchange, response, more, meter, services.settings)
        finally:
            await body_of(response).aclose()
    else:
        await relay_response(exchange, response, more)


async def _answer(
    services: Services,
    exchange: Exchange,
    route: Route,
    body: _Outgoing,
    incremental: bool,
) -> tuple[Route, Response]:
    """A body that is passed on as it comes cannot be sent again."""
    incremental = incremental or "text/event-stream" in (exchange.header(b"accept") or "")

    async def send(at: Route, data: RequestBody | AsyncIterable[bytes]) -> Response:
        length = (data.size or None) if isinstance(data, RequestBody) else None
        request = upstream_request(
            services, exchange, at, _label(exchange), identity=False, incremental=incremental, length=length
        )
        return await request.send(data.to_send() if isinstance(data, RequestBody) else data)

    if not isinstance(body, ClientBody):
        return route, await send(route, body)
    if route.settled:
        return route, await send(route, body.sent_once(route))
    try:
        return await ask(route, lambda at: send(at, body.written_for(at)))
    finally:
        body.let_go()


def _label(exchange: Exchange) -> str:
    return api_label(exchange.scope["path"])


async def relay_response(
    exchange: Exchange, response: Response, more: Sequence[str], head: rules.Headers | None = None
) -> None:
    """An upstream's answer to the client as it is: an answer that breaks off breaks off here too. `more` are patterns
    of further headers that come back with it, `head` are its headers where they are known."""
    head = [*rules.to_client(response.headers.raw, more), _NO_PAGE] if head is None else head
    try:
        await exchange.unless_gone(_relay_body(exchange, response, head))
    finally:
        await body_of(response).aclose()
    await exchange.end()


async def _relay_body(exchange: Exchange, response: Response, head: rules.Headers) -> None:
    await exchange.start(response.status_code, head)
    send = exchange.sender()
    try:
        async for chunk in body_of(response):
            await send(chunk)
    except httpx.HTTPError:
        raise ConnectionCut from None
