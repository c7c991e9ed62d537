"""What the relay does not stream itself is passed through both ways, streamed, status and body unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence

import httpx
import orjson

from relay.api.exchange import Exchange
from relay.api.models import list_models
from relay.api.services import Replica
from relay.http.contract import ConnectionCut
from relay.protocol import headers as rules
from relay.protocol.apis import api_label
from relay.protocol.errors import UpstreamUnreachable
from relay.upstream.client import body_of
from relay.upstream.routing import Route, route_path

# A body has no meaning with these (RFC 9110, section 9.3): an upstream that does not read it takes it for the next
# request of the connection, which is another client's.
_BODILESS = ("GET", "HEAD")
# A file's content may be a page; opened at this origin it could read what the playground keeps there.
_NO_PAGE = (b"content-security-policy", b"sandbox")


async def any_path(replica: Replica, exchange: Exchange, *, own: bool = False) -> None:
    """Every other path under /v1/. A JSON body's model decides the upstream, else the path's API does. `own`: what the
    path names is known to be the caller's."""
    path = exchange.scope["path"]
    caller = exchange.caller
    if not own:
        caller.check_path(exchange.method, path)
    if exchange.method == "GET" and path == "/v1/models" and caller.restricted:
        await list_models(replica, exchange)
        return
    anthropic = exchange.header(b"anthropic-version") is not None
    kind = (exchange.header(b"content-type") or "").split(";")[0].strip().lower()
    if exchange.method in ("POST", "PUT", "PATCH") and kind == "application/json":
        raw, body = await exchange.json(replica.settings.limits.body, empty=True)
        model = body.get("model")
        if isinstance(model, str) and model:
            route = caller.route(replica.settings.upstreams, None, model, body)
            if route.model != model or caller.restricted:
                raw = orjson.dumps({**body, "model": route.model})
            await forward(replica, exchange, route, raw)
            return
        caller.check_unnamed(path)
        await forward(replica, exchange, route_path(replica.settings.upstreams, path, anthropic=anthropic), raw)
        return
    if not own and exchange.method not in ("GET", "HEAD", "DELETE"):
        caller.check_unnamed(path)
    route = route_path(replica.settings.upstreams, path, anthropic=anthropic)
    await forward(replica, exchange, route, exchange.chunks())


async def forward(replica: Replica, exchange: Exchange, route: Route, body: bytes | AsyncIterable[bytes]) -> None:
    slot = replica.gate.open(exchange.caller)
    try:
        await _forward(replica, exchange, route, body)
    finally:
        slot.release()


async def _forward(replica: Replica, exchange: Exchange, route: Route, body: bytes | AsyncIterable[bytes]) -> None:
    if not isinstance(body, bytes) and (exchange.method in _BODILESS or not exchange.has_body()):
        await exchange.discard_body()
        exchange.headers = [item for item in exchange.headers if item[0] != b"content-length"]
        body = b""
    headers = rules.to_upstream(
        exchange.headers,
        api_key=route.upstream.api_key(),
        identity=False,
        length=len(body) if body and isinstance(body, bytes) else None,
        request_id=exchange.request_id,
        more=route.upstream.headers,
    )
    url = route.url(exchange.target + (f"?{exchange.query}" if exchange.query else ""))
    meter = replica.metrics.meter(api_label(exchange.scope["path"]), route.upstream.name, route.label)
    sending = asyncio.ensure_future(replica.ask(meter, exchange.method, url, headers, body))
    if exchange.body_read:
        gone = asyncio.ensure_future(exchange.until_gone())
        await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            raise ConnectionCut
        gone.cancel()
    try:
        response = await sending
    except UpstreamUnreachable as error:
        raise exchange.too_slow or error from None
    await relay_response(exchange, response, route.upstream.headers)


async def relay_response(exchange: Exchange, response: httpx.Response, more: Sequence[str]) -> None:
    """An upstream's answer to the client as it is: an answer that breaks off breaks off here too. `more` are patterns
    of further headers that come back with it."""
    gone = asyncio.ensure_future(exchange.until_gone()) if exchange.body_read else None
    stream = body_of(response)
    relaying = asyncio.ensure_future(_relay_body(exchange, response, more))
    try:
        watched = (relaying,) if gone is None else (relaying, gone)
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not relaying.done():
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            raise ConnectionCut
        await relaying
    finally:
        if gone is not None:
            gone.cancel()
        await stream.aclose()
    await exchange.end()


async def _relay_body(exchange: Exchange, response: httpx.Response, more: Sequence[str]) -> None:
    await exchange.start(response.status_code, [*rules.to_client(response.headers.raw, more), _NO_PAGE])
    send = exchange.sender()
    try:
        async for chunk in body_of(response):
            await send(chunk)
    except httpx.HTTPError:
        raise ConnectionCut from None
