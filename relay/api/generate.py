"""POST on the three APIs: a new stream, a resume, or a request that is passed through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import orjson

from relay.api import resume, tickets
from relay.api.delivery import Delivery, stream_headers
from relay.api.exchange import ConnectionCut, Exchange
from relay.api.joining import Joining
from relay.api.passthrough import forward, relay_response
from relay.api.replica import Replica
from relay.auth.gate import Slot
from relay.protocol import headers as rules
from relay.protocol.dialect import Dialect, JsonObject
from relay.protocol.errors import ApiError, BadRequest, UpstreamMalformed
from relay.protocol.ids import new_stream_id
from relay.protocol.lifecycle import Ending
from relay.streams.account import Request
from relay.streams.producer import Opened, Producer, Refused
from relay.upstream import NO_EVENT_STREAM, Route, body_of


async def generate(replica: Replica, exchange: Exchange, dialect: Dialect) -> None:
    if exchange.header(b"last-event-id") is not None:
        await resume.by_post(replica, exchange, dialect)
        return
    raw, body = await exchange.json(replica.settings.limits.body)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("`model` is missing. Name the model as a string.", code="missing_model")
    route = exchange.caller.route(replica.settings.upstreams, dialect.name, model, body)
    if route.model != model or exchange.caller.restricted:
        body = {**body, "model": route.model}
        raw = orjson.dumps(body)
    if body.get("stream") is not True:
        await forward(replica, exchange, route, raw)
        return
    await _stream(replica, exchange, dialect, route, raw, body)


async def _stream(
    replica: Replica, exchange: Exchange, dialect: Dialect, route: Route, raw: bytes, body: JsonObject
) -> None:
    original = raw
    usage = route.upstream.usage
    asking = dialect.ask_for_usage(body) if usage != "passthrough" else None
    if asking is not None:
        raw = orjson.dumps(asking)
    detached = route.upstream.buffer and "respond-async" in _preferences(exchange)
    headers = rules.to_upstream(
        # A preference that the relay has met is not for a relay behind it.
        [item for item in exchange.headers if not (detached and item[0] == b"prefer")],
        api_key=route.upstream.api_key(),
        identity=True,
        length=len(raw),
        request_id=exchange.request_id,
        more=route.upstream.headers,
    )
    url = route.url(exchange.target + (f"?{exchange.query}" if exchange.query else ""))
    meter = replica.metrics.meter(dialect.name, route.upstream.name, route.label)

    async def call() -> httpx.Response:
        return await replica.ask(meter, "POST", url, headers, raw)

    registry = replica.registry
    owner = await registry.owner_of_new(exchange.caller.identity)
    if route.upstream.buffer:
        await registry.check_store()
    stream = new_stream_id(logged=route.upstream.buffer)
    scope = tickets.scope_of(replica, exchange)
    joining = Joining(replica, exchange, stream, owner, original)
    if route.upstream.buffer and (joined := await joining.join()) is not None:
        if detached:
            replica.gate.resume(exchange.caller.identity)
            await _accept(replica, exchange, joined, scope)
        else:
            await resume.from_start(replica, exchange, joined, dialect)
        return
    try:  # only now: who joins needs no room
        registry.check_room(owner)
        slot = replica.gate.open(exchange.caller)
    except ApiError:
        await joining.release()
        raise
    producer = registry.begin(
        stream,
        dialect,
        route,
        owner=owner,
        request=Request(exchange.request_id, exchange.received, route.model, rules.trace_id(exchange.headers)),
        hide_usage=asking is not None and usage == "observe",
        call=call,
    )
    if slot.counted:
        registry.later(_release_at_end(producer, slot))
    if detached:
        try:
            await producer.become_stream()
        except ApiError:
            producer.stop(Ending.ABANDONED)
            await joining.release()
            raise
        if producer.logged:
            registry.detach(producer)
            await _accept(replica, exchange, producer.stream, scope)
            return
    reader = registry.first_reader(producer)
    try:
        upstream_headers = await _opened(replica, exchange, producer, expected=joining.expected)
    except ConnectionCut:
        reader.close()
        if joining.expected:
            registry.later(_see_through(replica, producer, joining))
        raise
    except BaseException:
        reader.close()
        await _release_unless_made(producer, joining)
        raise
    await _release_unless_made(producer, joining)
    if upstream_headers is None:
        reader.close()
        return
    headers = stream_headers(producer.stream, resumable=producer.logged, upstream=upstream_headers)
    headers += tickets.url_header(replica, producer.stream, scope if producer.logged else "")
    await Delivery(exchange, reader, producer.dialect, replica.settings).run(headers)


def _preferences(exchange: Exchange) -> set[str]:
    """What `Prefer` lists (RFC 7240, section 2)."""
    return {item.split(";")[0].strip().lower() for item in (exchange.header(b"prefer") or "").split(",")}


async def _accept(replica: Replica, exchange: Exchange, stream: str, scope: str) -> None:
    """The generation runs on its own; who wants it reads it from its address (RFC 7240, section 4.1)."""
    location = f"/streams/{stream}"
    headers = [
        (b"location", location.encode()),
        (b"preference-applied", b"respond-async"),
        (b"relay-stream-id", stream.encode()),
        (b"relay-resumable", b"true"),
        *tickets.url_header(replica, stream, scope),
    ]
    await exchange.answer(202, orjson.dumps({"id": stream, "object": "relay.stream", "location": location}), headers)


async def _release_at_end(producer: Producer, slot: Slot) -> None:
    try:
        await producer.done()
    finally:
        slot.release()


async def _release_unless_made(producer: Producer, joining: Joining) -> None:
    if not (producer.made.done() and producer.made.result() and producer.logged):
        await joining.release()


async def _see_through(replica: Replica, producer: Producer, joining: Joining) -> None:
    """The client has gone before its answer, but its next attempt finds this generation by its key: it goes on,
    and its abandon clock runs."""
    await asyncio.wait((producer.answer,), timeout=replica.settings.streams.patience)
    if not producer.answer.done():
        try:
            await producer.become_stream()
        except ApiError:
            producer.stop(Ending.ABANDONED)
    elif not producer.answer.cancelled() and isinstance(refused := producer.answer.result(), Refused):
        await body_of(refused.response).aclose()
    await _release_unless_made(producer, joining)


async def _opened(replica: Replica, exchange: Exchange, producer: Producer, *, expected: bool) -> rules.Headers | None:
    """The headers to stream with; None where the answer was no stream and has been passed on."""
    gone = asyncio.ensure_future(exchange.until_gone())
    try:
        await asyncio.wait(
            (producer.answer, gone),
            timeout=replica.settings.streams.patience,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if gone.done():
            if not expected:
                # Nobody holds this stream's id yet, so nobody can come back for it.
                producer.stop(Ending.ABANDONED)
            raise ConnectionCut
    finally:
        gone.cancel()
    if not producer.answer.done():
        try:
            await producer.become_stream()
        except ApiError:
            producer.stop(Ending.ABANDONED)
            raise
        return []
    answer = producer.answer.result()
    if isinstance(answer, ApiError):
        raise answer
    if isinstance(answer, Opened):
        return answer.headers
    await _pass_refusal(exchange, answer, producer.route.upstream.headers)
    return None


async def _pass_refusal(exchange: Exchange, refused: Refused, more: Sequence[str]) -> None:
    if refused.response.status_code < 400:
        # A 200 that is no stream would end in silence at the client, a redirect is never followed.
        await body_of(refused.response).aclose()
        raise UpstreamMalformed(NO_EVENT_STREAM)
    await relay_response(exchange, refused.response, more)
