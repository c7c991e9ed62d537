"""`GET /v1/models` for a key that may ask for some models only: the upstream's list without the others."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson

from relay.api.exchange import Exchange
from relay.api.outgoing import upstream_request
from relay.api.services import Services
from relay.protocol import headers as rules
from relay.protocol.apis import api_label
from relay.protocol.errors import UpstreamMalformed
from relay.upstream.client import body_of
from relay.upstream.routing import route_path

_LONGEST = 16 << 20
_PATIENCE = 30.0
_NOT_OF_THE_LIST = (b"content-length", b"content-type", b"content-encoding", b"etag", b"last-modified")


async def list_models(services: Services, exchange: Exchange) -> None:
    slot = services.gate.acquire(exchange.caller)
    try:
        await exchange.discard_body()
        async with asyncio.timeout(_PATIENCE):
            status, head, body = await _listed(services, exchange)
    except (TimeoutError, httpx.HTTPError):
        raise UpstreamMalformed("The upstream did not send its list of models to its end. Try again.") from None
    finally:
        slot.release()
    await exchange.answer(status, body, head)


async def _listed(services: Services, exchange: Exchange) -> tuple[int, rules.Headers, bytes]:
    anthropic = exchange.header(b"anthropic-version") is not None
    route = route_path(services.settings.upstreams, "/v1/models", anthropic=anthropic)
    request = upstream_request(
        services,
        exchange,
        route,
        api_label("/v1/models"),
        identity=True,
        length=None,
        headers=[item for item in exchange.headers if not item[0].startswith(b"if-")],
    )
    response = await request.send(b"")
    body = b""
    try:
        async for chunk in body_of(response):
            body += chunk
            if len(body) > _LONGEST:
                raise UpstreamMalformed("The upstream's list of models is too long to be sifted. Ask for one model.")
    finally:
        await body_of(response).aclose()
    if response.status_code == 200:
        body = _sifted(exchange, route.upstream.strip_prefix, body)
    head = [item for item in rules.to_client(response.headers.raw) if item[0] not in _NOT_OF_THE_LIST]
    return response.status_code, head, body


def _sifted(exchange: Exchange, prefix: str, body: bytes) -> bytes:
    key = exchange.caller.key
    try:
        listed: Any = orjson.loads(body)
        models = [item for item in listed["data"] if isinstance(item["id"], str)]
    except (ValueError, TypeError, LookupError):
        raise UpstreamMalformed("The upstream's list of models is in no known form. Ask for one model.") from None
    assert key is not None
    own = [item for item in models if key.may_ask_for(item["id"]) or key.may_ask_for(prefix + item["id"])]
    return orjson.dumps({**listed, "data": own})
