"""POST on the three APIs: a new stream, a resume, or a request that is passed through.

Promises: for every stream that was made, its client is answered; the bytes of a request are held once, and no longer
than until the upstream has them, however long the stream lives.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import httpx
import orjson

from relay.api import event_ids, resume, tickets
from relay.api.delivery import NO_STORE, Delivery, stream_headers, suit
from relay.api.exchange import Exchange
from relay.api.joining import Joining
from relay.api.outgoing import RequestBody, UpstreamRequest, upstream_request
from relay.api.passthrough import forward, relay_response
from relay.api.services import Services
from relay.auth.gate import Slot
from relay.http.contract import ConnectionCut
from relay.protocol import agents
from relay.protocol import headers as rules
from relay.protocol.dialect import Dialect, parse_count
from relay.protocol.errors import ApiError, BadRequest, UpstreamMalformed
from relay.protocol.ids import is_logged, new_stream_id
from relay.protocol.outcomes import Ending
from relay.streams.account import Request
from relay.streams.answer import Asking, Call, Opened, Refused
from relay.streams.producer import Producer
from relay.streams.refusal import failed_answer, no_event_stream, read_refusal
from relay.upstream.client import body_of
from relay.upstream.failover import ask
from relay.upstream.routing import Route

# A body up to this size goes out in one write with its head, and is let go of at the upstream's answer.
_SMALL_BODY = 16 * 1024


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that has been read, and where it goes. `joining` is None where it asks for no stream."""

    route: Route
    body: RequestBody
    original: RequestBody = field(default_factory=lambda: RequestBody(b""))
    """The client's own bytes, where the request may go on to a further upstream."""
    owner: str = ""
    stream: str = ""
    joining: Joining | None = None
    asks_for_usage: bool = False
    choices: int = 1


async def generate(services: Services, exchange: Exchange, dialect: Dialect) -> None:
    if exchange.header(b"last-event-id") is not None:
        await resume.by_post(services, exchange, dialect)
        return
    request = await _read(services, exchange, dialect)
    if request.joining is None:
        await forward(services, exchange, request.route, request.body.take())
    else:
        await _stream(services, exchange, dialect, request, request.joining)


async def _read(services: Services, exchange: Exchange, dialect: Dialect) -> _Request:
    raw, body = await exchange.json(services.settings.limits.body)
    original = raw
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("`model` is missing. Name the model as a string.", code="missing_model")
    route = exchange.caller.route(services.settings.upstreams, dialect.name, model, body)
    if route.model != model or exchange.caller.restricted:
        body = {**body, "model": route.model}
        raw = orjson.dumps(body)
    if body.get("stream") is not True:
        return _Request(route, RequestBody(raw))
    registry = services.registry
    owner = await registry.owners.of_new_stream(
        exchange.caller.identity, may_degrade=services.settings.store.outage == "degrade"
    )
    logged = route.upstream.buffer
    if logged:
        await registry.check_store()
        if not registry.owners.secret_known:
            # Under the owner that this replica makes up meanwhile, nobody would find the stream in the log.
            services.metrics.meter(dialect.name, route.upstream.name, route.pattern).degraded()
            logged = False
    stream = new_stream_id(logged=logged)
    joining = Joining(services, exchange, stream, owner, raw)
    asking = dialect.ask_for_usage(body) if route.upstream.usage != "passthrough" else None
    if asking is not None:
        raw = orjson.dumps(asking)
    spare = RequestBody(b"" if route.settled else original)
    choices = parse_count(body.get("n")) or 1
    return _Request(route, RequestBody(raw), spare, owner, stream, joining, asking is not None, choices)


async def _stream(
    services: Services, exchange: Exchange, dialect: Dialect, request: _Request, joining: Joining
) -> None:
    """Nothing here holds the request's bytes, for this lasts as long as its client reads."""
    registry = services.registry
    route = request.route
    detached = is_logged(request.stream) and "respond-async" in _preferences(exchange)
    scope = tickets.scope_of(services, exchange)
    with_ids = event_ids.wanted(services, exchange)
    if route.upstream.buffer and (joined := await joining.join()) is not None:
        if detached:
            services.gate.charge_resume(exchange.caller.identity)
            await _accept(services, exchange, joined, scope)
        else:
            await resume.from_start(services, exchange, joined, dialect)
        return
    try:  # only now: who joins needs no room
        registry.check_room(request.owner)
        slot = services.gate.acquire(exchange.caller)
    except ApiError:
        joining.release()
        raise
    producer = registry.begin(
        request.stream,
        dialect,
        route,
        owner=request.owner,
        request=Request(exchange.request_id, exchange.received, route.model, rules.trace_id(exchange.headers)),
        hide_usage=request.asks_for_usage and route.upstream.usage == "observe",
        choices=request.choices,
        call=_call(services, exchange, dialect, request, preference_met=detached),
    )
    if slot.counted:
        registry.later(_release_at_end(producer, slot))
    if joining.claimed:
        registry.later(joining.follow(producer))
    if detached:
        try:
            await producer.ensure_created()
        except ApiError:
            producer.stop(Ending.ABANDONED)
            raise
        if producer.logged:
            registry.keep_late_headers(producer)
            registry.run_detached(producer)
            await _accept(services, exchange, producer.stream, scope)
            return
    reader = suit(registry.lookup.first_reader(producer), exchange, services.settings)
    goes_on = joining.expected or route.upstream.after_abandon == "drain"
    try:
        upstream_headers = await _opened(services, exchange, producer, goes_on=goes_on)
    except ConnectionCut:
        reader.close()
        if goes_on:
            registry.later(_see_through(producer, _patience(services, exchange)))
        raise
    except BaseException:
        reader.close()
        raise
    if upstream_headers is None:
        reader.close()
        return
    headers = stream_headers(
        producer.stream, services.settings.streams.heartbeat, resumable=producer.logged, upstream=upstream_headers
    )
    headers += tickets.url_header(services, producer.stream, scope if producer.logged else "")
    source = reader if with_ids else event_ids.WithoutIds(reader)
    await Delivery(exchange, source, services.settings).run(headers)


def _call(services: Services, exchange: Exchange, dialect: Dialect, request: _Request, *, preference_met: bool) -> Call:
    """The call upstream. `preference_met`: a preference that the relay has met is not for a relay after it."""
    route, body, original = request.route, request.body, request.original
    hidden = request.asks_for_usage and route.upstream.usage == "observe"
    headers = [item for item in exchange.headers if not (preference_met and item[0] == b"prefer")]

    def to(at: Route, length: int) -> UpstreamRequest:
        return upstream_request(
            services,
            exchange,
            at,
            dialect.name,
            identity=True,
            incremental=True,
            length=length,
            headers=headers,
            streamed=True,
        )

    async def once(asking: Asking) -> httpx.Response:
        asking(route, hidden)
        return await to(route, body.size).send(body.take() if body.size <= _SMALL_BODY else body)

    async def in_turn(asking: Asking) -> httpx.Response:
        own, client_s = body.take(), original.take()
        last = route

        async def send(at: Route) -> httpx.Response:
            nonlocal last
            last = at
            data, hide = (own, hidden) if at is route else _written_for(at, dialect, client_s)
            asking(at, hide)
            return await to(at, len(data)).send(data)

        answered, response = await ask(route, send)
        if answered is not last:
            asking(answered, False)
        return response

    return once if route.settled else in_turn


def _written_for(route: Route, dialect: Dialect, original: bytes) -> tuple[bytes, bool]:
    """A client's request as it goes to this upstream, and whether the usage that it asks for is hidden."""
    body = {**orjson.loads(original), "model": route.model}
    asking = dialect.ask_for_usage(body) if route.upstream.usage != "passthrough" else None
    return orjson.dumps(body if asking is None else asking), asking is not None and route.upstream.usage == "observe"


def _preferences(exchange: Exchange) -> set[str]:
    """What `Prefer` lists (RFC 7240, section 2)."""
    return {item.split(";")[0].strip().lower() for item in (exchange.header(b"prefer") or "").split(",")}


async def _accept(services: Services, exchange: Exchange, stream: str, scope: str) -> None:
    """The generation runs on its own; who wants it reads it from its address (RFC 7240, section 4.1)."""
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


def _patience(services: Services, exchange: Exchange) -> float:
    streams = services.settings.streams
    return agents.patience(streams.patience, streams.patience_limit, exchange.headers)


async def _see_through(producer: Producer, patience: float) -> None:
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
        await exchange.unless_gone(asyncio.wait([producer.answer], timeout=_patience(services, exchange)))
        if exchange.gone:
            raise ConnectionCut
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
        services.registry.keep_late_headers(producer)
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
        if response.status_code >= 400:
            await relay_response(exchange, response, producer.route.upstream.headers)
            return None
        # A 200 that is no stream would end in silence at the client, a redirect is never followed.
        error = await exchange.unless_gone(read_refusal(response))
        if error.status is None:
            raise UpstreamMalformed(no_event_stream(response, error))
        answer = failed_answer(response, error, producer.route.upstream.headers)
    body = producer.dialect.upstream_error_body(answer.error, answer.status, exchange.request_id)
    await exchange.answer(answer.status, body, answer.headers)
    return None
