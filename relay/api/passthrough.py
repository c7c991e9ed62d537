"""What the relay does not stream itself is passed through both ways, streamed, status and body unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

import httpx
import orjson

from relay.api.exchange import ConnectionCut, Exchange
from relay.api.replica import Replica
from relay.protocol import headers as rules
from relay.protocol.apis import api_label
from relay.upstream import Route, body_of, route_model, route_path


async def any_path(replica: Replica, exchange: Exchange) -> None:
    """Every other path under /v1/. A JSON body's model decides the upstream, else the path's API does."""
    path = exchange.scope["path"]
    anthropic = exchange.header(b"anthropic-version") is not None
    kind = (exchange.header(b"content-type") or "").split(";")[0].strip().lower()
    if exchange.method in ("POST", "PUT", "PATCH") and kind == "application/json":
        raw, body = await exchange.json(replica.settings.limits.body, empty=True)
        model = body.get("model")
        if isinstance(model, str) and model:
            route = route_model(replica.settings.upstreams, None, model)
            if route.model != model:
                raw = orjson.dumps({**body, "model": route.model})
            await forward(replica, exchange, route, raw)
            return
        await forward(replica, exchange, route_path(replica.settings.upstreams, path, anthropic=anthropic), raw)
        return
    route = route_path(replica.settings.upstreams, path, anthropic=anthropic)
    await forward(replica, exchange, route, exchange.chunks())


async def forward(replica: Replica, exchange: Exchange, route: Route, body: bytes | AsyncIterable[bytes]) -> None:
    whole = isinstance(body, bytes)
    headers = rules.to_upstream(
        exchange.headers,
        api_key=route.upstream.api_key(),
        identity=False,
        length=len(body) if isinstance(body, bytes) else None,
        request_id=exchange.request_id,
    )
    if not whole and not exchange.has_body():
        await exchange.discard_body()
        body = b""
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
    await relay_response(exchange, await sending)


async def relay_response(exchange: Exchange, response: httpx.Response) -> None:
    """An upstream's answer to the client as it is: an answer that breaks off breaks off here too."""
    gone = asyncio.ensure_future(exchange.until_gone()) if exchange.body_read else None
    stream = body_of(response)
    relaying = asyncio.ensure_future(_relay_body(exchange, response))
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


async def _relay_body(exchange: Exchange, response: httpx.Response) -> None:
    await exchange.start(response.status_code, rules.to_client(response.headers.raw))
    send = exchange.sender()
    try:
        async for chunk in body_of(response):
            await send(chunk)
    except httpx.HTTPError:
        raise ConnectionCut from None
