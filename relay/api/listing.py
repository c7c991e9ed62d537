"""`GET /streams`: an owner's streams, by name and as a list, for whoever has no id of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import orjson

from relay.api import finished, resume, stream_names
from relay.api.delivery import NO_STORE
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.gate import Caller
from relay.protocol.errors import ApiError, BadRequest, MethodNotAllowed, StoreUnavailable
from relay.protocol.ids import EventId
from relay.store.listings import Listed
from relay.store.log import Status

# Looks at the log at a time.
_AT_ONCE = 32


async def streams(services: Services, exchange: Exchange) -> None:
    """With `Accept: application/json` a list, else the newest stream of a name as events."""
    if exchange.method != "GET":
        raise MethodNotAllowed("Use GET.", headers={"allow": "GET"})
    await exchange.discard_body()
    query = parse_qs(exchange.query, keep_blank_values=True)
    name = stream_names.checked(query["name"][-1], "name") if "name" in query else None
    live = _is_true(query.get("live", ["false"])[-1])
    callers = services.gate.callers(exchange.headers, exchange.query)
    exchange.caller = callers[0]
    if "application/json" in (exchange.header(b"accept") or ""):
        services.gate.charge_resume(exchange.caller.identity)
        await _list(services, exchange, callers, name, live=live)
        return
    position = exchange.header(b"last-event-id") or query.get("last_event_id", [None])[-1]
    if position is not None:  # an EventSource has read one of them, and comes back to it
        await resume.of_stream(services, exchange, resume.position(position))
        return
    if name is None:
        raise BadRequest("`name` is missing. Name a stream (/streams?name=…), or ask with Accept: application/json.")
    await newest(services, exchange, callers, name, live=live)


def _is_true(word: str) -> bool:
    if word not in ("true", "false"):
        raise BadRequest("`live` must be true or false. Send one of these, or leave it out.")
    return word == "true"


async def newest(services: Services, exchange: Exchange, callers: Sequence[Caller], name: str, *, live: bool) -> None:
    """Answer with the newest stream of a name, or that there is none. A request that still waits for its answer is
    waited for, within `streams.patience`."""
    owners, listing = services.registry.owners, services.registry.listing
    patience = services.settings.streams.patience
    services.gate.charge_resume(exchange.caller.identity)
    for caller in callers:
        if not caller.can_come_back:
            continue
        owner = await owners.of_credential(caller.identity)
        found = await exchange.unless_gone(listing.newest(owner, name, live=live, patience=patience))
        if found is not None:
            exchange.caller = caller
            await resume.proceed(services, exchange, EventId(found, 0), None, caller.identity)
            return
    await exchange.answer(204, b"", [NO_STORE])


async def _list(
    services: Services, exchange: Exchange, callers: Sequence[Caller], name: str | None, *, live: bool
) -> None:
    registry = services.registry
    found: list[tuple[Status, str | None]] = []
    for caller in callers:
        if not caller.can_come_back:
            continue
        owner = await registry.owners.of_credential(caller.identity)
        listed = await registry.listing.of(owner, name)
        for first in range(0, len(listed), _AT_ONCE):
            some = listed[first : first + _AT_ONCE]
            statuses = await asyncio.gather(*(_status(services, each, owner) for each, _ in some))
            found += [(status, shown) for status, (_, shown) in zip(statuses, some, strict=True) if status is not None]
    found.sort(key=lambda item: item[0].born, reverse=True)
    data: list[dict[str, Any]] = [
        {**finished.described(status), "name": shown} for status, shown in found if not (live and status.outcome)
    ]
    await exchange.answer(200, orjson.dumps({"object": "list", "data": data}), [NO_STORE])


async def _status(services: Services, listed: Listed, owner: str) -> Status | None:
    """None for a stream that is not there yet, or no longer."""
    try:
        return await services.registry.lookup.status(listed.stream, owner)
    except StoreUnavailable:
        raise
    except ApiError:
        return None
