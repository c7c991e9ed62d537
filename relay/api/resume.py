"""Coming back to a stream: the same POST with `Last-Event-ID`, and `/streams/{id}`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

import orjson

from relay.api import tickets
from relay.api.delivery import Delivery, stream_headers
from relay.api.exchange import Exchange
from relay.api.services import Replica
from relay.protocol.closing import told_by_relay
from relay.protocol.dialect import Dialect
from relay.protocol.errors import ApiError, InvalidLastEventId, MethodNotAllowed
from relay.protocol.ids import EventId, is_stream_id, parse_event_id
from relay.streams.registry import Asking

logger = logging.getLogger(__name__)


def position(value: str) -> EventId:
    """The position that a `Last-Event-ID` names. Raises InvalidLastEventId."""
    parsed = parse_event_id(value)
    if parsed is None:
        raise InvalidLastEventId(
            "Last-Event-ID is not an event id of this relay (<stream id>.<n>). Send the id of the last event "
            "that arrived, or <stream id>.0 for the stream from its start, or no Last-Event-ID for a new answer."
        )
    return parsed


async def by_post(replica: Replica, exchange: Exchange, dialect: Dialect) -> None:
    """Resume on the API's own path: the body is ignored and nothing goes upstream."""
    with counted(replica, dialect.name):
        replica.gate.resume(exchange.caller.identity)
        after = position(exchange.header(b"last-event-id") or "")
        await exchange.discard_body()
    await proceed(replica, exchange, after, dialect.name, exchange.caller.identity)


async def streams(replica: Replica, exchange: Exchange) -> None:
    """GET /streams/{id}: its events as SSE, or with `Accept: application/json` its status. DELETE stops it."""
    if exchange.method not in ("GET", "DELETE"):
        raise MethodNotAllowed("Use GET or DELETE.", headers={"allow": "GET, DELETE"})
    await exchange.discard_body()
    stream = exchange.scope["path_params"]["id"]
    if not is_stream_id(stream):
        raise InvalidLastEventId("The path names no stream of this relay. Use the value of the Relay-Stream-Id header.")
    who = await tickets.asking(replica, exchange, stream, stop=exchange.method == "DELETE")
    replica.gate.resume(_payer(who, stream))
    if exchange.method == "DELETE":
        await replica.registry.lookup.stop(stream, await replica.registry.asking(who))
        await exchange.answer(204, b"")
        return
    if "application/json" in (exchange.header(b"accept") or ""):
        await _status(replica, exchange, stream, who)
        return
    value = exchange.header(b"last-event-id")
    if value is None:
        value = parse_qs(exchange.query, keep_blank_values=True).get("last_event_id", [f"{stream}.0"])[-1]
    with counted(replica, None):
        after = position(value)
        if after.stream != stream:
            raise InvalidLastEventId("Last-Event-ID is of another stream than the path. Send an id of this stream.")
    await proceed(replica, exchange, after, None, who)


async def from_start(replica: Replica, exchange: Exchange, stream: str, dialect: Dialect) -> None:
    """Join a stream that an earlier request began."""
    replica.gate.resume(exchange.caller.identity)
    await proceed(replica, exchange, EventId(stream, 0), dialect.name, exchange.caller.identity, joins=True)


@contextmanager
def counted(replica: Replica, api: str | None, kind: type[ApiError] = ApiError) -> Iterator[None]:
    """A resume that is refused in here is counted by its code."""
    try:
        yield
    except kind as error:
        replica.metrics.resumes.labels(api or "other", error.code).inc()
        raise


async def proceed(
    replica: Replica, exchange: Exchange, after: EventId, api: str | None, who: Asking, *, joins: bool = False
) -> None:
    """Answer with the stream after a position; `joins` where the client has seen nothing of it yet."""
    with counted(replica, api):
        asking = await replica.registry.asking(who)
        attached = await replica.registry.lookup.attach(after, asking, api, joins=joins)
        try:
            replica.gate.replay(_payer(who, after.stream), attached.backlog)
        except ApiError:
            if attached.reader is not None:
                attached.reader.close()
            raise
    result = "joined" if joins else "complete" if attached.reader is None else "live" if attached.live else "replay"
    replica.metrics.resumes.labels(attached.dialect.name, result).inc()
    fields = {"stream": after.stream, "after": after.n, "result": result, "backlog": attached.backlog}
    logger.info("stream resumed", extra={"fields": {**fields, "request_id": exchange.request_id}})
    headers = stream_headers(after.stream, replica.settings.streams.heartbeat, resumable=True)
    if attached.reader is None:
        await exchange.answer(204, b"", headers[1:])
        return
    await Delivery(exchange, attached.reader, attached.dialect, replica.settings).run(headers)


def _payer(who: Asking, stream: str) -> bytes:
    """Whose rates count: the holders of tickets for a stream have them together."""
    return who if isinstance(who, bytes) else b"\0ticket\0" + stream.encode()


async def _status(replica: Replica, exchange: Exchange, stream: str, who: Asking) -> None:
    status = await replica.registry.lookup.status(stream, await replica.registry.asking(who))
    body = {
        "id": stream,
        "object": "relay.stream",
        "api": status.api,
        "state": "ended" if status.outcome else "live",
        "outcome": status.outcome or None,
        "last_event_id": str(EventId(stream, status.top, bool(status.outcome) and told_by_relay(status.outcome))),
        "events": status.top,
        "created_at": status.born,
        "ended_at": status.ended or None,
        "usage": _usage(status.usage),
    }
    await exchange.answer(200, orjson.dumps(body))


def _usage(note: str) -> dict[str, int] | None:
    given, _, made = note.partition("/")
    return {"input_tokens": int(given), "output_tokens": int(made)} if made else None
