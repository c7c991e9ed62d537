"""The responses API's own resume: what the relay streamed is retrieved and cancelled from the log.

`GET /v1/responses/{id}?stream=true&starting_after=N` continues after the event whose `sequence_number` is N,
`POST /v1/responses/{id}/cancel` stops the generation, so the unmodified OpenAI SDK resumes any response that
went through the relay. A response that the relay does not have is the upstream's: passed through.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import orjson

from relay.api import kept, told
from relay.api.exchange import Exchange
from relay.api.passthrough import any_path
from relay.api.resume import counted, proceed
from relay.api.services import Services
from relay.protocol import sse
from relay.protocol.dialect import JsonObject, parse_count, parse_object
from relay.protocol.end_mark import End
from relay.protocol.errors import (
    ApiError,
    BadRequest,
    NotFound,
    PositionUnknown,
    ResponseIdAmbiguous,
    StoreBehind,
    StreamNotFound,
)
from relay.protocol.ids import EventId
from relay.protocol.outcomes import StreamFailure
from relay.store.log import Status

_SEQUENCE = re.compile(rb'"sequence_number"\s*:\s*(\d{1,18})')
_DONE = b"data: [DONE]\n"


async def retrieve(services: Services, exchange: Exchange) -> None:
    query = parse_qs(exchange.query)
    if exchange.method == "GET" and query.get("stream", [""])[-1].lower() == "true":
        status = await _stream_of(services, exchange)
        if status is not None:
            await _from_log(services, exchange, status, query.get("starting_after", [""])[-1])
            return
    own = False
    if exchange.method == "GET" and exchange.caller.key is not None:
        try:
            own = await _stream_of(services, exchange) is not None
        except ResponseIdAmbiguous:
            own = True  # whichever answer it is, it is the caller's
    await _upstream_s(services, exchange, own=own)


async def cancel(services: Services, exchange: Exchange) -> None:
    status = await _stream_of(services, exchange) if exchange.method == "POST" else None
    if status is None:
        await _upstream_s(services, exchange, own=False)
        return
    await exchange.discard_body()
    owner = await services.registry.owners.of_credential(exchange.caller.identity)
    await services.registry.lookup.stop(status.stream, owner)
    told.stopped(services, exchange, status.stream, by_ticket=False)
    await exchange.answer(200, orjson.dumps(await _last_response(services, status)))


async def _from_log(services: Services, exchange: Exchange, status: Status, after: str) -> None:
    await exchange.discard_body()
    with counted(services, "responses"):
        if after and not re.fullmatch(r"[0-9]{1,18}", after):
            raise BadRequest("`starting_after` is not a sequence number. Send the last event's `sequence_number`.")
        n, end = await _position_after(services, status, int(after)) if after else (0, False)
    await proceed(services, exchange, EventId(status.stream, n, end), "responses", exchange.caller.identity)


async def _upstream_s(services: Services, exchange: Exchange, *, own: bool) -> None:
    """What is not answered from the log. Upstream all keys are one account: with a key only the response of a stream of
    its owner's is to be had there, unless its `paths` allow more. Raises NotFound."""
    key = exchange.caller.key
    if key is not None and not own and not key.may_use(exchange.scope["path"]):
        await exchange.discard_body()
        raise NotFound("No such response for this key. Check the id, and use a key of the owner that asked for it.")
    await any_path(services, exchange, own=own)


async def _stream_of(services: Services, exchange: Exchange) -> Status | None:
    """The stream of the response in the path, where its owner asks and the log still knows it. Raises
    ResponseIdAmbiguous."""
    asking = exchange.caller.identity
    services.gate.charge_resume(asking)
    try:
        with counted(services, "responses", ResponseIdAmbiguous):
            return await kept.stream_of(services, asking, exchange.scope["path_params"]["id"])
    except StreamNotFound:
        return None


class Numbers:
    """Where an event's own number stands in a stream: for certain only where the numbers rise without exception, and
    where no event without one follows, which its reader may have seen or not."""

    def __init__(self, sequence: int) -> None:
        self._sequence = sequence
        self._events = 0
        self._position = 0  # the last event whose number is not above the one looked for
        self._last = -1
        self._passed = False
        self._unsure = False

    def take(self, frame: bytes) -> None:
        """The stream's next event. Raises PositionUnknown."""
        number = _sequence_of(frame)
        self._events += 1
        if number is None:
            self._unsure = self._unsure or not (self._passed or _DONE in frame)
            return
        if number <= self._last:
            raise PositionUnknown
        self._last = number
        if number <= self._sequence:
            self._position = self._events
            self._unsure = False
        else:
            self._passed = True

    def position(self, end: End | None) -> tuple[int, bool]:
        """What to go on after, once all that the log holds was taken: an event, and whether its reader was told the
        end, too, whose frames have numbers of their own. Raises PositionUnknown, and StoreBehind where the number is
        beyond what the log holds of a stream that has not ended."""
        told = _numbers_of(end.closing) if end is not None and end.closing else []
        if self._sequence in told and self._last < self._sequence:
            return self._events, self._sequence == told[-1]
        if self._unsure or (self._events and self._last < 0):
            raise PositionUnknown
        if self._passed:
            return self._position, False
        if self._last < self._sequence:
            raise StoreBehind if end is None else PositionUnknown
        return self._events, False


async def _position_after(services: Services, status: Status, sequence: int) -> tuple[int, bool]:
    """The position of the event with that sequence number, and whether the end after it was told. Raises
    PositionUnknown, StoreBehind."""
    numbers = Numbers(sequence)
    n = 0
    while True:
        page = await services.registry.log.read(status.stream, n, status.binding)
        for frame in page.frames:
            numbers.take(frame)
        n += len(page.frames)
        if not page.full:
            return numbers.position(page.end)


def _sequence_of(frame: bytes) -> int | None:
    """An event's own sequence number: where its contents speak of some too, only JSON can tell."""
    found = _SEQUENCE.findall(frame)
    if len(found) < 2:
        return int(found[0]) if found else None
    return next(iter(_numbers_of(frame)), None)


def _numbers_of(frames: bytes) -> list[int | None]:
    return [_number(event) for event in sse.Parser(len(frames)).feed(frames)]


def _number(event: sse.Event) -> int | None:
    try:
        return parse_count(parse_object(event.data).get("sequence_number"))
    except StreamFailure:
        return None


async def _last_response(services: Services, status: Status) -> JsonObject:
    """The response object of the last event that carries one."""
    found: JsonObject | None = None
    n = 0
    while True:
        page = await services.registry.log.read(status.stream, n, status.binding)
        for frame in [*page.frames, *([page.end.closing] if page.end is not None else [])]:
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
