"""How a stream stands, and its finished answer: `GET /streams/{id}` with `Accept: application/json`.

With `?content=true` the answer is the object that the stream's API gives where nothing is streamed. Only a stream that
ended well (a stop is no failure) has that object for its whole body, with 200: one that goes on is 202, one that failed
424, each with what had come of it under `content`, so that no part is taken for the whole.

Promises: nothing goes upstream, and nobody is counted as a reader; the log is read and the answer written in pieces
that take turns with those of large request bodies (`relay.api.bodies`), whose budget it shares.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import parse_qs

import orjson

from relay import access
from relay.api import told
from relay.api.delivery import NO_STORE
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.owners import Principal
from relay.protocol import sse
from relay.protocol.apis import DIALECTS
from relay.protocol.dialect import STOPPED, JsonObject, openai_error_type
from relay.protocol.end_mark import End, sent_by_relay, words_of
from relay.protocol.errors import BadRequest, PositionUnknown, StoreBehind, UpstreamMalformed
from relay.protocol.finished import assembly_of
from relay.protocol.finished.parts import Grown, Value, pieces
from relay.protocol.headers import Headers
from relay.protocol.ids import EventId
from relay.protocol.outcomes import Ending, StreamFailure
from relay.protocol.upstream_error import UpstreamError
from relay.protocol.usage_note import read_usage
from relay.store.log import Status

# How long the loop is not given back, in seconds, and how much is sent in one go.
_TURN = 0.005
_PART = 64 * 1024
# The last events may tell an error, and what follows one.
_LAST = 3


def asked_for(exchange: Exchange) -> bool:
    """Does the request ask for JSON, and not for the events? Raises BadRequest."""
    accept = exchange.header(b"accept") or ""
    return "application/json" in accept or (_content(exchange) and "text/event-stream" not in accept)


def _content(exchange: Exchange) -> bool:
    word = parse_qs(exchange.query, keep_blank_values=True).get("content", ["false"])[-1]
    if word not in ("true", "false"):
        raise BadRequest("`content` must be true or false. Write `content=true`, or leave the parameter out.")
    return word == "true"


async def answer(services: Services, exchange: Exchange, stream: str, principal: Principal, rates: bytes) -> None:
    """`rates` is whose rates the events count for that are read once more."""
    status = await services.registry.lookup.status(stream, await services.registry.owners.of_principal(principal))
    if not _content(exchange):
        await exchange.answer(200, orjson.dumps(described(status)), [NO_STORE])
        return
    services.gate.charge_replay(rates, status.top)
    exchange.charge = services.bodies.open(rates, 0)
    await exchange.unless_gone(_finished(services, exchange, status, principal))
    await exchange.end()


def described(status: Status) -> JsonObject:
    """How a stream stands."""
    return {
        "id": status.stream,
        "object": "relay.stream",
        "api": status.api,
        "state": "ended" if status.outcome else "live",
        "outcome": status.outcome or None,
        "last_event_id": str(
            EventId(status.stream, status.top, bool(status.outcome) and sent_by_relay(status.outcome))
        ),
        "events": status.top,
        "created_at": status.born,
        "ended_at": status.ended or None,
        "usage": read_usage(status.usage),
    }


async def _finished(services: Services, exchange: Exchange, status: Status, principal: Principal) -> None:
    content, end, error = await _read(services, exchange, status)
    if end is not None and not status.outcome:  # it has ended meanwhile
        owner = await services.registry.owners.of_principal(principal)
        status = await services.registry.lookup.status(status.stream, owner)
    if end is None:
        code, body, headers = 202, Grown(described(status), content=content), [(b"retry-after", b"1")]
    elif end.outcome in (Ending.COMPLETED, Ending.STOPPED):
        code, body, headers = 200, content, []
        if end.outcome == Ending.STOPPED and isinstance(content, dict):
            body = Grown(content, relay=STOPPED)
    else:
        code, body, headers = 424, _failed(status, end, error, content), []
    fields = {"stream": status.stream, "status": code, **told.who(services, exchange)}
    access.of_stream("answer fetched", {**fields, "request_id": exchange.request_id})
    await _send(services, exchange, code, body, [NO_STORE, exchange.id_header(), *headers])


async def _read(
    services: Services, exchange: Exchange, status: Status
) -> tuple[Value, End | None, UpstreamError | None]:
    """The answer as far as the log has it, its end, and the error that its last events tell. Raises PositionUnknown,
    StoreBehind, StoreUnavailable, BodiesFull."""
    assembly = assembly_of(status.api)
    last: deque[bytes] = deque(maxlen=_LAST)
    assert exchange.charge is not None
    n, end = 0, None
    while True:
        page = await services.registry.log.read(status.stream, n, status.binding)
        if page.gap:
            raise PositionUnknown if status.outcome else StoreBehind
        exchange.charge.add(page.size)
        async with services.bodies.turns:
            for frame in page.frames:
                n += 1
                last.append(frame)
                for event in _events(frame):
                    assembly.add(event, str(EventId(status.stream, n)))
        end = page.end
        if not page.full:
            break
    if end is None and status.outcome:
        raise PositionUnknown
    if end is not None and end.closing:
        last.append(end.closing)
        for event in _events(end.closing):
            assembly.add(event, str(EventId(status.stream, n, True)))
    return assembly.content(), end, _error(status.api, last)


def _events(frame: bytes) -> Iterator[sse.Event]:
    with suppress(StreamFailure):
        yield from sse.Parser(len(frame)).feed(frame)


def _error(api: str, frames: deque[bytes]) -> UpstreamError | None:
    watch = DIALECTS[api].watch()
    for frame in frames:
        for event in _events(frame):
            with suppress(StreamFailure):
                watch.see(event)
    return watch.error


def _failed(status: Status, end: End, error: UpstreamError | None, content: Value) -> Grown:
    """A refusal's form, its code the outcome, with how the stream stands beside it."""
    words = words_of(end.outcome) if error is None else error.message
    given = {"message": words, "type": openai_error_type(502), "param": None, "code": end.outcome}
    return Grown(error=given, stream=Grown(described(status), content=content))


async def _send(services: Services, exchange: Exchange, status: int, body: Value, headers: Headers) -> None:
    """Raises UpstreamMalformed for an answer that JSON cannot be written of, before anything is sent."""
    parts: list[bytes] = []
    source = pieces(body)
    try:
        while not await _write(services, source, parts):
            pass
    except StreamFailure as failure:
        raise UpstreamMalformed(failure.message) from None
    head: Headers = [(b"content-length", b"%d" % sum(map(len, parts))), (b"content-type", b"application/json")]
    await exchange.start(status, head + headers)
    send = exchange.sender()
    parts.reverse()
    while parts:  # what was sent need not be held
        await send(parts.pop())


async def _write(services: Services, source: Iterator[bytes], parts: list[bytes]) -> bool:
    """Write for one turn. Is that all?"""
    async with services.bodies.turns:
        until = time.monotonic() + _TURN
        written: list[bytes] = []
        size = 0
        for piece in source:
            written.append(piece)
            size += len(piece)
            if size >= _PART:
                parts.append(b"".join(written))
                written, size = [], 0
                if time.monotonic() >= until:
                    return False
        parts.append(b"".join(written))
        return True
