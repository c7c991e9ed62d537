"""Coming back to a stream: the same POST with `Last-Event-ID`, and `/streams/{id}`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import parse_qs

import orjson

from relay.api import askers, event_ids, finished, tickets, told, unread
from relay.api.delivery import NO_STORE, deliver, stream_headers, suit
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.owners import Principal
from relay.protocol.cors import Cors
from relay.protocol.dialect import Dialect
from relay.protocol.errors import ApiError, InvalidLastEventId, MethodNotAllowed
from relay.protocol.ids import EventId, is_stream_id, parse_event_id
from relay.protocol.legs import Shown
from relay.streams.lookup import Attached


def position(value: str) -> EventId:
    """The position that a `Last-Event-ID` names. Raises InvalidLastEventId."""
    parsed = parse_event_id(value)
    if parsed is None:
        raise InvalidLastEventId(
            "Last-Event-ID is not an event id of this relay (<stream id>.<n>). Send the id of the last event "
            "that arrived, or <stream id>.0 for the stream from its start, or no Last-Event-ID for a new answer."
        )
    return parsed


async def by_post(services: Services, exchange: Exchange, dialect: Dialect) -> None:
    """Resume on the API's own path: the body is ignored and nothing goes upstream."""
    with counted(services, dialect.name):
        services.gate.charge_resume(exchange.caller.identity)
        after = position(exchange.header(b"last-event-id") or "")
        await exchange.discard_body()
    await proceed(services, exchange, after, dialect.name, exchange.caller.identity)


async def streams(services: Services, exchange: Exchange) -> None:
    """GET /streams/{id}: its events as SSE, or with `Accept: application/json` how it stands, or its finished answer.
    DELETE stops it."""
    if exchange.method not in ("GET", "DELETE"):
        raise MethodNotAllowed("Use GET or DELETE.", headers={"allow": "GET, DELETE"})
    await exchange.discard_body()
    stream = exchange.scope["path_params"]["id"]
    if not is_stream_id(stream):
        raise InvalidLastEventId("The path names no stream of this relay. Use the value of the Relay-Stream-Id header.")
    principal = await tickets.authenticate(services, exchange, stream, stop=exchange.method == "DELETE")
    services.gate.charge_resume(_rate_subject(principal, stream))
    if exchange.method == "DELETE":
        asking = await services.registry.owners.of_principal(principal)
        await services.registry.lookup.stop(stream, asking, _shown(exchange, principal))
        told.stopped(services, exchange, stream, by_ticket=not isinstance(principal, bytes))
        await exchange.answer(204, b"")
        return
    if finished.asked_for(exchange):
        await finished.answer(services, exchange, stream, principal, _rate_subject(principal, stream))
        return
    value = exchange.header(b"last-event-id")
    if value is None:
        value = parse_qs(exchange.query, keep_blank_values=True).get("last_event_id", [f"{stream}.0"])[-1]
    with counted(services, None):
        after = position(value)
        if after.stream != stream:
            raise InvalidLastEventId("Last-Event-ID is of another stream than the path. Send an id of this stream.")
    await proceed(services, exchange, after, None, principal)


async def of_stream(services: Services, exchange: Exchange, after: EventId) -> None:
    """Resume where a position says, for its stream's owner."""
    exchange.caller = await askers.of_stream(services, exchange, after.stream)
    services.gate.charge_resume(exchange.caller.identity)
    await proceed(services, exchange, after, None, exchange.caller.identity)


async def ticket(services: Services, exchange: Exchange) -> None:
    """POST /streams/{id}/ticket: a ticket for a stream that is there, for its owner to hand on."""
    if exchange.method != "POST":
        raise MethodNotAllowed("Use POST.", headers={"allow": "POST"})
    await exchange.discard_body()
    stream = exchange.scope["path_params"]["id"]
    if not is_stream_id(stream):
        raise InvalidLastEventId("The path names no stream of this relay. Use the value of the Relay-Stream-Id header.")
    exchange.caller = await askers.of_stream(services, exchange, stream)
    services.gate.charge_resume(exchange.caller.identity)
    await services.registry.lookup.status(
        stream, await services.registry.owners.of_credential(exchange.caller.identity)
    )
    head, body = tickets.issue(services, exchange, stream)
    await exchange.answer(200, orjson.dumps(body), [*head, NO_STORE])


async def from_start(services: Services, exchange: Exchange, stream: str, dialect: Dialect) -> None:
    """Join a stream that an earlier request began."""
    services.gate.charge_resume(exchange.caller.identity)
    await proceed(services, exchange, EventId(stream, 0), dialect.name, exchange.caller.identity, joins=True)


@contextmanager
def counted(services: Services, api: str | None, kind: type[ApiError] = ApiError) -> Iterator[None]:
    """A resume that is refused in here is counted by its code."""
    try:
        yield
    except kind as error:
        services.metrics.resumes.labels(api or "other", error.code).inc()
        raise


async def proceed(
    services: Services,
    exchange: Exchange,
    after: EventId,
    api: str | None,
    principal: Principal,
    *,
    joins: bool = False,
) -> None:
    """Answer with the stream after a position; `joins` where the client has seen nothing of it yet."""
    with counted(services, api):
        with_ids = event_ids.wanted(services, exchange)
        # A ticket lets its holder read: how long the generation goes on is its owner's to say.
        abandon_after = unread.abandon_after(services, exchange) if isinstance(principal, bytes) else None
        scope = _scope(services, exchange, principal)
        asking = await services.registry.owners.of_principal(principal)
        attached = await services.registry.lookup.attach(
            after, asking, api, joins=joins, abandon_after=abandon_after, shown=_shown(exchange, principal)
        )
        try:
            services.gate.charge_replay(_rate_subject(principal, after.stream), attached.backlog)
        except ApiError:
            if attached.reader is not None:
                attached.reader.close()
            raise
    await _go_on(services, exchange, after, attached, with_ids, scope, joins=joins)


def _shown(exchange: Exchange, principal: Principal) -> Shown | None:
    """What who asks has shown of being the owner: a ticket is no such thing."""
    return Shown(exchange.headers, exchange.query) if isinstance(principal, bytes) else None


def _scope(services: Services, exchange: Exchange, principal: Principal) -> str:
    """What the ticket in this answer allows. None for the holder of one, who could prolong it without end. Raises
    BadRequest."""
    return tickets.scope_of(services, exchange) if isinstance(principal, bytes) else ""


async def joined(services: Services, exchange: Exchange, attached: Attached) -> None:
    """Read a stream that an earlier request began, and that this one has been given a place in."""
    assert attached.reader is not None
    after = EventId(attached.reader.stream, 0)
    try:
        with counted(services, attached.dialect.name):
            services.gate.charge_resume(exchange.caller.identity)
            services.gate.charge_replay(exchange.caller.identity, attached.backlog)
            with_ids = event_ids.wanted(services, exchange)
            scope = tickets.scope_of(services, exchange)
    except ApiError:
        attached.reader.close()
        services.registry.adoption.left(after.stream, delivered=False, joinable=attached.joinable)
        raise
    await _go_on(services, exchange, after, attached, with_ids, scope, joins=True)


async def _go_on(
    services: Services,
    exchange: Exchange,
    after: EventId,
    attached: Attached,
    with_ids: bool,
    scope: str,
    *,
    joins: bool,
) -> None:
    if not joins:  # a retry that comes now, on another replica, must not take its stream
        await services.registry.orphans.told_of(after.stream)
    result = "joined" if joins else "complete" if attached.reader is None else "live" if attached.live else "replay"
    services.metrics.resumes.labels(attached.dialect.name, result).inc()
    await told.reader_came(services, exchange, after, result, attached)
    kept = Cors.of_resume(attached.headers, exchange.own_headers)
    headers = stream_headers(after.stream, services.settings.streams.heartbeat, resumable=True, upstream=kept)
    headers += tickets.url_header(services, after.stream, scope)
    if attached.reader is None:
        await exchange.answer(204, b"", headers[1:])
        return
    reader = suit(attached.reader, exchange, services.settings)
    source = reader if with_ids else event_ids.WithoutIds(reader)
    exchange.rest = partial(deliver, services, exchange, source, headers, after.stream, joinable=attached.joinable)


def _rate_subject(principal: Principal, stream: str) -> bytes:
    """Whose rates count: the holders of tickets for a stream have them together."""
    return principal if isinstance(principal, bytes) else b"\0ticket\0" + stream.encode()
