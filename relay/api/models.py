"""`GET /v1/models`: what its caller may ask for, whichever upstream serves it, by the names that clients use.

The upstreams are asked at the same time, within bounds; one that fails does not spoil the others' models, and leaves
those that the settings name. The client's credential goes where the request would have gone without this module, and
to no other host: the others are asked with the relay's own key for them, or with none. `GET /v1/models/…` goes to the
upstream that serves the model, as a request that names it in a body does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import orjson

from relay.api.exchange import Exchange
from relay.api.outgoing import upstream_request
from relay.api.services import Services
from relay.config import UpstreamSettings
from relay.protocol import credentials
from relay.protocol import headers as rules
from relay.protocol.apis import api_label
from relay.protocol.dialect import JsonObject, parse_count
from relay.protocol.errors import ApiError, ModelNotFound, UpstreamMalformed
from relay.upstream.client import body_of
from relay.upstream.routing import Route, name_for, named_in_settings, route_model, route_path

logger = logging.getLogger(__name__)

_PATH = "/v1/models"
_LONGEST = 8 << 20
_LONGEST_OF_ALL = 32 << 20
_MOST = 10_000
_PATIENCE = 10.0
# So many are sifted before others have their turn.
_TURN = 100
_VERSION = (b"anthropic-version", b"2023-06-01")
_NOT_OF_THE_LIST = (b"content-length", b"content-type", b"content-encoding", b"etag", b"last-modified")


@dataclass(frozen=True, slots=True)
class _Answer:
    """`models` is None where it is no list of models that is known, `other` where it is JSON of another form."""

    status: int
    head: rules.Headers
    body: bytes
    models: list[JsonObject] | None
    other: bool


def is_one_s_own(exchange: Exchange, upstreams: Sequence[UpstreamSettings]) -> bool:
    """Is the list just what one upstream says?"""
    asked = _asked(exchange, upstreams)
    if exchange.caller.restricted or len(asked) != 1:
        return False
    return asked[0].models == ["*"] and not asked[0].strip_prefix and not asked[0].model


def of_model(exchange: Exchange, upstreams: list[UpstreamSettings], *, anthropic: bool) -> Route | None:
    """Where a request for one model's description goes, under the name that it has there; None for other paths, and for
    models that nobody serves."""
    model = exchange.scope["path"].removeprefix(f"{_PATH}/")
    if model == exchange.scope["path"] or not model:
        return None
    try:
        route = route_model(upstreams, "messages" if anthropic else None, model, bound=True)
    except ModelNotFound:
        return None
    if route.model != model:
        exchange.target = f"{_PATH}/{quote(route.model, safe=':@')}"
    return replace(route, next=None)


async def list_models(services: Services, exchange: Exchange) -> None:
    with services.gate.acquire(exchange.caller):
        await exchange.discard_body()
        status, body, head = await exchange.unless_gone(_listed(services, exchange))
    await exchange.answer(status, body, head)


def _apis(exchange: Exchange) -> tuple[str, ...]:
    """Those over which the client may ask for what it finds in the list."""
    anthropic = exchange.header(b"anthropic-version") is not None
    return ("messages",) if anthropic else ("chat", "responses", "messages")


def _asked(exchange: Exchange, upstreams: Sequence[UpstreamSettings]) -> list[UpstreamSettings]:
    return [upstream for upstream in upstreams if set(_apis(exchange)) & set(upstream.apis)]


async def _listed(services: Services, exchange: Exchange) -> tuple[int, bytes, rules.Headers]:
    upstreams = services.settings.upstreams
    asked = _asked(exchange, upstreams)
    first = route_path(upstreams, _PATH, anthropic=_apis(exchange) == ("messages",)).upstream
    # Several entries may be one account at one address: it is asked once.
    accounts: dict[tuple[str, str | None], UpstreamSettings] = {}
    for upstream in (first, *asked):
        if not upstream.model or upstream is first:
            accounts.setdefault((upstream.base_url, upstream.api_key_env), upstream)
    room = [_LONGEST_OF_ALL]
    asking = {key: asyncio.ensure_future(_ask(services, exchange, each, first, room)) for key, each in accounts.items()}
    try:
        await asyncio.wait(asking.values())
    finally:
        for task in asking.values():
            task.cancel()
    answers = {key: task.result() for key, task in asking.items()}
    own = answers[first.base_url, first.api_key_env]
    if isinstance(own, _Answer) and own.other and not exchange.caller.restricted:
        return own.status, own.body, _head(own)  # it cannot be added to
    found: dict[str, JsonObject] = {}
    for upstream in asked:
        answer = answers.get((upstream.base_url, upstream.api_key_env))
        await _sift(exchange, upstreams, upstream, answer, found)
    if not found and not (isinstance(own, _Answer) and own.models is not None):
        if isinstance(own, ApiError):
            raise own
        if own.status != 200:
            return own.status, own.body, _head(own)
        raise UpstreamMalformed("The upstream's list of models is in no known form. Ask for one model.")
    head = _head(own) if isinstance(own, _Answer) and own.status == 200 else [exchange.id_header()]
    return 200, orjson.dumps(_page(exchange, list(found.values()))), head


def _head(answer: _Answer) -> rules.Headers:
    return [item for item in answer.head if item[0] not in _NOT_OF_THE_LIST]


async def _ask(
    services: Services, exchange: Exchange, upstream: UpstreamSettings, first: UpstreamSettings, room: list[int]
) -> _Answer | ApiError:
    """One upstream's answer, or what went wrong with it."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await _fetch(services, exchange, upstream, first, room)
    except (TimeoutError, httpx.HTTPError):
        error: ApiError = UpstreamMalformed("The upstream did not send its list of models to its end. Try again.")
    except ApiError as refused:
        error = refused
    logger.warning("upstream %s: no list of models (%s)", upstream.name, error.code)
    return error


async def _fetch(
    services: Services, exchange: Exchange, upstream: UpstreamSettings, first: UpstreamSettings, room: list[int]
) -> _Answer:
    anthropic = upstream.apis == ["messages"] or _apis(exchange) == ("messages",)
    headers = [item for item in exchange.headers if not item[0].startswith(b"if-")]
    query = "limit=1000" if anthropic else exchange.query
    if upstream.api_key_env is None and _host(upstream) != _host(first):
        further = {name.lower().encode() for name in services.settings.auth.credential_headers}
        headers = [item for item in headers if item[0] not in further and not credentials.is_header(item[0])]
        query = credentials.without_credentials(query)
    if anthropic and exchange.header(_VERSION[0]) is None:
        headers.append(_VERSION)
    request = upstream_request(
        services,
        exchange,
        Route(upstream, "", "other"),
        api_label(_PATH),
        identity=True,
        length=None,
        headers=headers,
        query=query,
    )
    response = await request.send(b"")
    body = bytearray()
    try:
        async for chunk in body_of(response):
            body += chunk
            room[0] -= len(chunk)
            if len(body) > _LONGEST or room[0] < 0:
                raise UpstreamMalformed("The upstream's list of models is too long to be sifted. Ask for one model.")
    finally:
        await body_of(response).aclose()
    models, other = _models_in(body) if response.status_code == 200 else (None, False)
    return _Answer(response.status_code, rules.to_client(response.headers.raw), bytes(body), models, other)


def _host(upstream: UpstreamSettings) -> tuple[str, str]:
    parts = urlsplit(upstream.base_url)
    return parts.scheme, parts.netloc


def _models_in(body: bytearray) -> tuple[list[JsonObject] | None, bool]:
    try:
        listed: Any = orjson.loads(body)
    except ValueError:
        return None, False
    try:
        return [item for item in listed["data"] if isinstance(item["id"], str)], False
    except (TypeError, LookupError):
        return None, True


async def _sift(
    exchange: Exchange,
    upstreams: list[UpstreamSettings],
    upstream: UpstreamSettings,
    answer: _Answer | ApiError | None,
    found: dict[str, JsonObject],
) -> None:
    """Add what one upstream serves and the caller may ask for."""
    key = exchange.caller.key
    apis = [api for api in _apis(exchange) if api in upstream.apis]

    def may_ask_for(name: str) -> bool:
        return key is None or key.may_ask_for(name)

    models = answer.models if isinstance(answer, _Answer) and not upstream.model else None
    if models is None:
        for name in named_in_settings(upstreams, upstream, apis):
            if may_ask_for(name):
                found.setdefault(name, _entry(exchange, upstream, name, {}))
        return
    for n, item in enumerate(models[:_MOST]):
        if n % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        shown = name_for(upstreams, upstream, item["id"], apis, may_ask_for)
        if shown is not None:
            found.setdefault(shown, _entry(exchange, upstream, shown, item))


def _entry(exchange: Exchange, upstream: UpstreamSettings, name: str, item: JsonObject) -> JsonObject:
    """A model as its upstream describes it, with what the client's API has of each and whose it is."""
    if _apis(exchange) == ("messages",):
        common: JsonObject = {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    else:
        common = {"object": "model", "created": _seconds(item.get("created_at")), "owned_by": upstream.name}
    return {**common, **item, "id": name, "relay_upstream": upstream.name}


def _seconds(created: object) -> int:
    try:
        return int(datetime.fromisoformat(str(created)).timestamp())
    except (ValueError, OverflowError):
        return 0


def _page(exchange: Exchange, models: list[JsonObject]) -> JsonObject:
    if _apis(exchange) != ("messages",):
        return {"object": "list", "data": models}
    query = {name: values[-1] for name, values in parse_qs(exchange.query).items()}
    ids = [str(item["id"]) for item in models]
    after, before = query.get("after_id"), query.get("before_id")
    begin = ids.index(after) + 1 if after in ids else 0
    end = ids.index(before) if before in ids else len(ids)
    most = parse_count(int(limit)) if (limit := query.get("limit", "")).isdecimal() and len(limit) < 9 else None
    if before is not None and after is None:
        begin = max(end - (most or end), begin)
        more = begin > 0
    else:
        stop = min(begin + (most or end), end)
        end, more = stop, stop < end
    page = models[begin:end]
    bounds = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"data": page, "has_more": more, **bounds}
