"""POST on the three APIs: a new stream, a resume, or a request that is passed through.

Promises: for every stream that was made, its client is answered; the bytes of a request are held once, and no longer
than until the upstream has them, however long the stream lives.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import orjson

from relay.api import event_ids, kept, resume, stream_names, tickets, told, unread
from relay.api.attaching import Attaching
from relay.api.calling import Request, call
from relay.api.delivery import NO_STORE, deliver, stream_headers, suit
from relay.api.exchange import Exchange
from relay.api.joining import Joining
from relay.api.outgoing import ClientBody, is_name
from relay.api.passthrough import any_path, forward, relay_response
from relay.api.services import Services
from relay.auth.gate import Slot
from relay.http.contract import ConnectionCut
from relay.protocol import agents, application_headers, continuing
from relay.protocol import headers as rules
from relay.protocol.dialect import Dialect, parse_count
from relay.protocol.errors import (
    ApiError,
    BadRequest,
    IdempotencyKeyInFlight,
    TooManyRequests,
    Unavailable,
    UpstreamMalformed,
)
from relay.protocol.ids import is_logged, new_stream_id
from relay.protocol.json_edit import changes
from relay.protocol.outcomes import Ending
from relay.store.outbox import Note
from relay.streams import account
from relay.streams.answer import Opened, Refused
from relay.streams.lookup import Attached
from relay.streams.producer import Producer
from relay.streams.refusal import failed_answer, no_event_stream, read_refusal
from relay.upstream.client import body_of


async def generate(services: Services, exchange: Exchange, dialect: Dialect) -> None:
    if exchange.method != "POST":
        await any_path(services, exchange)
        return
    await services.beginnings.turn(exchange.caller.identity)
    if b"last-event-id" in exchange.named:
        await resume.by_post(services, exchange, dialect)
        return
    attaching = Attaching(services, exchange, abandon_after := unread.abandon_after(services, exchange))
    # Before the body: who may not go upstream now has nobody read it.
    slot = services.gate.admit(exchange.caller, may_join=Joining.is_possible(exchange, attaching))
    try:
        attaching.ask()
        request = await _read(services, exchange, dialect, attaching)
        slot.body_read()
        if request.joining is None:
            slot.pay()
            assert isinstance(request.body, ClientBody)
            await forward(services, exchange, request.route, request.body)
        else:
            await stream(services, exchange, dialect, request, request.joining, slot, abandon_after)
    except (TooManyRequests, Unavailable, IdempotencyKeyInFlight):
        slot.refund()
        raise
    finally:
        slot.release()


async def _read(services: Services, exchange: Exchange, dialect: Dialect, attaching: Attaching) -> Request:
    raw, body = await exchange.json(services.bodies)
    model = body.get("model")
    if not is_name(model):
        raise BadRequest("`model` is missing. Name the model as a string.", code="missing_model")
    named = await kept.look(exchange, body) if exchange.caller.key is not None else []
    route = exchange.caller.route(services.settings.upstreams, dialect.name, model, body)
    if body.get("stream") is not True:
        del body
        if named:
            await kept.check(services, exchange, named)
        return Request(route, ClientBody(exchange, raw, model))
    name = stream_names.of_header(exchange) if exchange.caller.can_come_back else None
    asking = dialect.ask_for_usage(body) if services.settings.asks_for_usage else None
    choices = parse_count(body.get("n")) or 1
    background = body.get("background") is True
    carried = services.settings.continues and continuing.carries(dialect.name, body)
    content = ClientBody(exchange, raw, model, None if asking is None else changes(body, asking))
    if attaching.takes_part:
        await attaching.read(raw, body)
    del body, asking  # larger than the body, and not charged
    if named:
        await kept.check(services, exchange, named)
    registry = services.registry
    owner = await registry.owners.of_new_stream(
        exchange.caller.identity, may_degrade=services.settings.store.outage == "degrade"
    )
    logged = route.upstream.buffer
    if logged:
        await registry.check_store()
        if not registry.owners.secret_known:
            # Under the owner that this replica makes up meanwhile, nobody would find the stream in the log.
            route.meter(services.metrics, dialect.name).degraded()
            logged = False
    stream = new_stream_id(logged=logged)
    if not logged:
        attaching.drop()
    # What belongs to nobody is joined by nobody.
    joins_as = owner if exchange.caller.can_come_back else stream
    joining = Joining(services, exchange, stream, raw, joins_as, attaching)
    return Request(route, content, owner, stream, joining, choices, background, carried=carried, name=name)


async def stream(
    services: Services,
    exchange: Exchange,
    dialect: Dialect,
    request: Request,
    joining: Joining,
    slot: Slot,
    abandon_after: float | None,
) -> None:
    """Nothing here holds the request's bytes, for this lasts until the upstream answers."""
    registry = services.registry
    route = request.route
    scope = tickets.scope_of(services, exchange)
    within_reach = exchange.caller.can_come_back or scope != ""
    detached = is_logged(request.stream) and within_reach and "respond-async" in _preferences(exchange)
    with_ids = event_ids.wanted(services, exchange)
    if route.upstream.buffer and joining.may_join and (joined := await joining.join()) is not None:
        request.body.let_go()
        slot.refund()
        if isinstance(joined, Attached):
            await resume.joined(services, exchange, joined)
        elif detached:
            services.gate.charge_resume(exchange.caller.identity)
            await _accept(services, exchange, joined, scope, request)
        else:
            await resume.from_start(services, exchange, joined, dialect)
        return
    try:  # only now: who joins needs no room
        registry.check_room(request.owner)
        slot.pay()
    except ApiError:
        joining.release()
        raise
    span = registry.tracing.stream(exchange.headers, dialect.name, route.model, time.monotonic() - exchange.received)
    producer = registry.begin(
        request.stream,
        dialect,
        route,
        owner=request.owner,
        request=account.Request(
            exchange.request_id,
            exchange.received,
            route.model,
            rules.trace_id(exchange.named.get(b"traceparent")) or span.trace_id,
            exchange.caller.key.label if exchange.caller.key is not None else "",
            span,
        ),
        hide_usage=route.upstream.usage == "observe" and request.body.asks(route),
        choices=request.choices,
        name=request.name,
        call=call(services, exchange, dialect, request, span, preference_met=detached, abandon_after=abandon_after),
    )
    begun = slot.hand_over()
    if begun.counted:
        registry.later(_release_at_end(producer, begun))
    joining.began(producer)
    if detached:
        try:
            await producer.ensure_created()
        except ApiError:
            producer.stop(Ending.ABANDONED)
            raise
        if producer.logged:
            registry.run_detached(producer)
            await _accept(services, exchange, producer.stream, scope, request)
            return
    reader = suit(registry.lookup.first_reader(producer, abandon_after), exchange, services.settings)
    goes_on = bool(joining.expected or request.name) or route.upstream.after_abandon == "drain"
    try:
        upstream_headers = await _opened(services, exchange, producer, goes_on=goes_on)
    except BaseException as error:
        reader.close()
        registry.adoption.left(producer.stream, delivered=False, joinable=False)
        if isinstance(error, ConnectionCut):
            told.reader_gone(services, exchange, producer.stream, 0, "left")
        if isinstance(error, ConnectionCut) and goes_on:
            if joining.attachable:
                producer.make()  # whoever comes next, on whatever replica, is to find it
            registry.later(_see_through(producer, _patience(services, exchange, dialect)))
        raise
    if upstream_headers is None:
        reader.close()
        return
    headers = stream_headers(
        producer.stream,
        services.settings.streams.heartbeat,
        resumable=producer.logged and within_reach,
        upstream=upstream_headers,
    )
    headers += tickets.url_header(services, producer.stream, scope if producer.logged else "")
    source = reader if with_ids else event_ids.WithoutIds(reader)
    exchange.rest = partial(deliver, services, exchange, source, headers, producer.stream, joinable=False)


def _preferences(exchange: Exchange) -> set[str]:
    """What `Prefer` lists (RFC 7240, section 2)."""
    if b"prefer" not in exchange.named:
        return set()
    return {item.split(";")[0].strip().lower() for item in (exchange.header(b"prefer") or "").split(",")}


async def _accept(services: Services, exchange: Exchange, stream: str, scope: str, request: Request) -> None:
    """The generation runs on its own; who wants it reads it from its address (RFC 7240, section 4.1), and the webhook
    is told of its end."""
    if (webhooks := services.registry.webhooks) is not None:
        await webhooks.promise(stream, Note(request.name or "", request.route.model[:200]))
    location = f"/streams/{stream}"
    headers = [
        (b"location", location.encode()),
        (b"preference-applied", b"respond-async"),
        (b"relay-stream-id", stream.encode()),
        (b"relay-resumable", b"true"),
        *tickets.url_header(services, stream, scope),
        NO_STORE,
    ]
    await exchange.answer(202, orjson.dumps({"id": stream, "object": "relay.stream", "location": location}), headers)


async def _release_at_end(producer: Producer, slot: Slot) -> None:
    """At the generation's end, whether its log can be told of it yet or not."""
    try:
        await producer.feed.over()
    finally:
        slot.release()


def _patience(services: Services, exchange: Exchange, dialect: Dialect) -> float | None:
    """None: as long as it takes. That an application is to answer with a stream is not known before it has."""
    streams = services.settings.streams
    if dialect.name == "sse":
        return None
    return agents.patience(streams.patience, streams.patience_limit, exchange.named.get(agents.TIMEOUT))


async def _see_through(producer: Producer, patience: float | None) -> None:
    """The client has gone before its answer, but its next attempt finds this generation by its key, or the upstream
    is read to its end all the same: it goes on, and its abandon clock runs."""
    await asyncio.wait((producer.answer,), timeout=patience)
    if not producer.answer.done():
        try:
            await producer.ensure_created()
        except ApiError:
            producer.stop(Ending.ABANDONED)
    elif not producer.answer.cancelled() and isinstance(refused := producer.answer.result(), Refused):
        await body_of(refused.response).aclose()


async def _opened(services: Services, exchange: Exchange, producer: Producer, *, goes_on: bool) -> rules.Headers | None:
    """The headers to stream with; None where the answer was no stream and has been passed on."""
    try:
        await exchange.presence.wait_for(producer.answer, _patience(services, exchange, producer.dialect))
    except ConnectionCut:
        if not goes_on:
            # Nobody holds this stream's id yet, so nobody can come back for it.
            producer.stop(Ending.ABANDONED)
        raise
    if not producer.answer.done():
        try:
            await producer.ensure_created()
        except ApiError:
            producer.stop(Ending.ABANDONED)
            raise
        # An upstream that has not answered yet has not named the request either.
        return producer.upstream_headers or [exchange.id_header()]
    if producer.answer.cancelled():
        # The generation has ended while its stream was being made (`max_duration`, a stop): there is its end to tell.
        if producer.created.done() and producer.created.result():
            return [exchange.id_header()]
        raise ApiError("The relay failed. Try again; if it lasts, look into its log for this request id.")
    answer = producer.answer.result()
    if isinstance(answer, ApiError):
        raise answer
    if isinstance(answer, Opened):
        return [exchange.id_header()] if answer.headers is None else answer.headers
    if isinstance(answer, Refused):
        response = answer.response
        upstream = producer.route.upstream
        if producer.dialect.name == "sse":
            raw = response.headers.raw
            head = application_headers.to_client(raw, cookies=upstream.cookies, more=upstream.headers)
            await relay_response(exchange, response, upstream.headers, head)
            return None
        if response.status_code >= 400:
            await relay_response(exchange, response, upstream.headers)
            return None
        # A 200 that is no stream would end in silence at the client, a redirect is never followed.
        error = await exchange.unless_gone(read_refusal(response))
        if error.status is None:
            raise UpstreamMalformed(no_event_stream(response, error), headers={"x-should-retry": "false"})
        answer = failed_answer(response, error, upstream.headers)
    body = producer.dialect.upstream_error_body(answer.error, answer.status, exchange.request_id)
    await exchange.answer(answer.status, body, answer.headers)
    return None
