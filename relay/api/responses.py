"""The responses API's own resume: what the relay streamed is retrieved and cancelled from the log.

`GET /v1/responses/{id}?stream=true&starting_after=N` continues behind the event whose `sequence_number` is N,
`POST /v1/responses/{id}/cancel` stops the generation, so the unmodified OpenAI SDK resumes any response that
went through the relay. A response that the relay does not have is the upstream's: passed through.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import orjson

from relay.api.exchange import Exchange
from relay.api.passthrough import any_path
from relay.api.replica import Replica
from relay.api.resume import counted, proceed
from relay.protocol import sse
from relay.protocol.dialect import JsonObject, count, parse_object
from relay.protocol.errors import ApiError, BadRequest, NotFound, PositionUnknown, StoreUnavailable, StreamNotFound
from relay.protocol.ids import EventId
from relay.protocol.lifecycle import StreamFailure
from relay.streams.registry import response_name

_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d{1,18})')


async def retrieve(replica: Replica, exchange: Exchange) -> None:
    query = parse_qs(exchange.query)
    stream = None
    streamed = query.get("stream", [""])[-1].lower() == "true"
    if exchange.method == "GET" and (streamed or exchange.caller.key is not None):
        stream = await _stream_of(replica, exchange)
    if stream is None or not streamed:
        await _upstream_s(replica, exchange, stream)
        return
    await exchange.discard_body()
    after = query.get("starting_after", [""])[-1]
    with counted(replica, "responses"):
        if after and not re.fullmatch(r"[0-9]{1,18}", after):
            raise BadRequest("`starting_after` is not a sequence number. Send the last event's `sequence_number`.")
        n = await _events_upto(replica, stream, int(after)) if after else 0
    await proceed(replica, exchange, EventId(stream, n), "responses", exchange.caller.identity)


async def cancel(replica: Replica, exchange: Exchange) -> None:
    stream = await _stream_of(replica, exchange) if exchange.method == "POST" else None
    if stream is None:
        await _upstream_s(replica, exchange, None)
        return
    await exchange.discard_body()
    await replica.registry.stop(stream, exchange.caller.identity)
    await exchange.answer(200, orjson.dumps(await _last_response(replica, stream)))


async def _upstream_s(replica: Replica, exchange: Exchange, stream: str | None) -> None:
    """What is not answered from the log. Upstream all keys are one account: with a key only the response of a stream of
    its owner's is to be had there, unless its `paths` allow more. Raises NotFound."""
    key = exchange.caller.key
    own = key is not None and stream is not None
    if key is not None and not own and not key.may_use(exchange.scope["path"]):
        await exchange.discard_body()
        raise NotFound("No such response for this key. Check the id, and use a key of the owner that asked for it.")
    await any_path(replica, exchange, own=own)


async def _stream_of(replica: Replica, exchange: Exchange) -> str | None:
    """The stream of the response in the path, where its owner asks and the log still knows it."""
    registry = replica.registry
    asking = exchange.caller.identity
    replica.gate.resume(asking)
    try:
        owner = await registry.owner_of(asking)
        stream = await registry.log.named(response_name(owner, exchange.scope["path_params"]["id"]))
        if stream is not None:
            await registry.status(stream, asking)
        return stream
    except StreamNotFound:
        return None
    except StoreUnavailable:
        if exchange.caller.key is not None:
            raise
        return None


async def _events_upto(replica: Replica, stream: str, sequence: int) -> int:
    """How many of the stream's events have a sequence number up to that one. Raises PositionUnknown."""
    n = 0
    known = False
    while True:
        page = await replica.registry.log.read(stream, n)
        for frame in page.frames:
            number = _sequence_of(frame)
            if number is not None:
                known = known or number <= sequence
                if number > sequence:
                    return n
            n += 1
        if not page.full:
            break
    if not known:
        raise PositionUnknown
    return n


def _sequence_of(frame: bytes) -> int | None:
    """An event's own sequence number: where its contents speak of some too, only JSON can tell."""
    found = _SEQUENCE.findall(frame)
    if len(found) < 2:
        return int(found[0]) if found else None
    for event in sse.Parser(len(frame)).feed(frame):
        try:
            return count(parse_object(event.data).get("sequence_number"))
        except StreamFailure:
            return None
    return None


async def _last_response(replica: Replica, stream: str) -> JsonObject:
    """The response object of the last event that carries one."""
    found: JsonObject | None = None
    n = 0
    while True:
        page = await replica.registry.log.read(stream, n)
        for frame in page.frames:
            if b'"response":' in frame:
                for event in sse.Parser(len(frame)).feed(frame):
                    try:
                        response = parse_object(event.data).get("response")
                    except StreamFailure:
                        continue
                    found = response if isinstance(response, dict) else found
        n += len(page.frames)
        if not page.full:
            break
    if found is None:
        raise ApiError("The stream ended before its response began. Send the request again.", code="no_response")
    return found
