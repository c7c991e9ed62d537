"""What the process's log is told of requests: who they were, which stream they were about, and what became of them."""

from __future__ import annotations

import contextlib
from typing import Any

from relay import access
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.gate import Caller
from relay.auth.owners import NOBODY
from relay.protocol.apis import api_label
from relay.protocol.errors import ApiError, StoreUnavailable
from relay.protocol.ids import EventId, parse_event_id
from relay.streams.lookup import Attached
from relay.tracing.spans import NO_READER


def who(services: Services, exchange: Exchange) -> dict[str, Any]:
    """Owner and key by their names, or what stands for the credential; nothing where none is known."""
    caller: Caller | None = getattr(exchange, "caller", None)
    if caller is None:
        return {}
    if caller.key is not None:
        return {"owner": caller.key.owner, "key": caller.key.label}
    owners = services.registry.owners
    if caller.identity == NOBODY or not owners.secret_known:
        return {"owner": "nobody" if caller.identity == NOBODY else "unknown"}
    return {"owner": owners.shown(owners.owner(caller.identity))}


def refused(services: Services, exchange: Exchange, error: ApiError) -> None:
    """The relay's own refusal. Of one that somebody was told who came back to a stream the log is told by default."""
    path: str = exchange.scope["path"]
    fields: dict[str, Any] = {"code": error.code, "status": error.status, "api": api_label(path)}
    fields |= who(services, exchange)
    position = parse_event_id(exchange.header(b"last-event-id") or "")
    stream = exchange.scope.get("path_params", {}).get("id") if path.startswith("/streams/") else None
    at = parse_event_id(f"{stream}.0") if position is None and stream is not None else position
    if at is not None:
        fields["stream"] = at.stream
        if position is not None:
            fields["after"] = position.n
    fields["request_id"] = exchange.request_id
    tell = access.of_stream if at is not None else access.of_request
    tell("refused", fields, failed=error.status >= 500)


async def reader_came(services: Services, exchange: Exchange, after: EventId, result: str, attached: Attached) -> None:
    """Somebody has come back to a stream, or joined it."""
    fields = {"stream": after.stream, "after": after.n, "result": result, "backlog": attached.backlog}
    access.of_stream("stream resumed", {**fields, **who(services, exchange), "request_id": exchange.request_id})
    services.registry.chronicle.note(
        after.stream, "reader came", after=after.n, result=result, request=exchange.request_id
    )
    span = exchange.returning = services.registry.tracing.reader(
        exchange.headers, attached.dialect.name, after.stream, after=after.n, result=result
    )
    if span is not NO_READER:
        with contextlib.suppress(StoreUnavailable):
            await services.registry.link(span, after.stream)
    if attached.reader is None:
        span.end()


def reader_gone(services: Services, exchange: Exchange, stream: str, position: int, why: str) -> None:
    """A reader's connection has ended at this position; `why` is `finished` where it has had all."""
    tell = access.of_request if why == "finished" else access.of_stream
    if exchange.returning is not None:
        exchange.returning.end(position=position, why=why)
    if why != "finished" or exchange.returning is not None:
        services.registry.chronicle.note(stream, "reader gone", position=position, why=why, request=exchange.request_id)
    if tell is access.of_request and not access.tells_all():
        return
    fields = {"stream": stream, "position": position, "why": why, **who(services, exchange)}
    fields["request_id"] = exchange.request_id
    tell("reader gone", fields)


def stopped(services: Services, exchange: Exchange, stream: str, *, by_ticket: bool) -> None:
    """Somebody has asked for a stream's end."""
    by = {"by": "ticket"} if by_ticket else {"by": "credential", **who(services, exchange)}
    services.registry.chronicle.note(stream, "stop asked for", **by, request=exchange.request_id)
    access.of_stream("stop asked for", {"stream": stream, **by, "request_id": exchange.request_id})
