"""The call upstream for a request that has been read."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from relay.api.application_body import ApplicationBody
from relay.api.exchange import Exchange
from relay.api.joining import Joining
from relay.api.outgoing import ClientBody, RequestBody, UpstreamRequest, upstream_request
from relay.api.services import Services
from relay.protocol.dialect import Dialect
from relay.protocol.json_rpc import Id
from relay.streams.answer import Asking, Call
from relay.tracing.spans import StreamSpan
from relay.upstream.client import Response
from relay.upstream.failover import ask
from relay.upstream.routing import Route


@dataclass(slots=True)
class Request:
    """A request that has been read, and where it goes; nothing of it changes. `joining` is None where it asks for no
    stream; `name` is what its owner calls the stream, None where nobody can ask for it by a name; `rpc` are the ids of
    the JSON-RPC requests that it has."""

    route: Route
    body: ClientBody | ApplicationBody
    owner: str = ""
    stream: str = ""
    joining: Joining | None = None
    choices: int = 1
    background: bool = False
    carried: bool = False
    """May another call go on with its answer?"""
    name: str | None = None
    rpc: tuple[Id, ...] = ()


def call(
    services: Services,
    exchange: Exchange,
    dialect: Dialect,
    request: Request,
    span: StreamSpan,
    *,
    preference_met: bool,
    abandon_after: float | None,
) -> Call:
    """The call upstream. `preference_met`: a preference that the relay has met is not for a relay after it;
    `abandon_after` is what its client has said of that, for such a relay."""
    route, body = request.route, request.body
    stream = request.stream
    key = f"relay-{stream}"
    carried = request.carried

    def on_continued() -> None:
        services.registry.on_continued(stream)

    headers = exchange.headers
    if preference_met:
        headers = [item for item in headers if item[0] != b"prefer"]
    if span.traceparent:  # what is upstream is a child of the relay's span, where the client asked for a trace at all
        own = (b"traceparent", span.traceparent.encode())
        headers = [own if item[0] == b"traceparent" else item for item in headers]

    def to(at: Route, length: int) -> UpstreamRequest:
        return upstream_request(
            services,
            exchange,
            at,
            dialect.name,
            identity=True,
            incremental=True,
            length=length if length or dialect.path else None,
            headers=headers,
            streamed=bool(dialect.path),
            abandon_after=abandon_after,
        )

    def sent(at: Route, data: RequestBody) -> Coroutine[Any, Any, Response]:
        return to(at, data.size).stream(
            data,
            dialect.name,
            key,
            background=request.background,
            on_continued=on_continued if carried else None,
            rpc=request.rpc,
        )

    def hides(at: Route) -> bool:
        return at.upstream.usage == "observe" and body.asks(at)

    async def once(asking: Asking) -> Response:
        asking(route, hides(route))
        return await sent(route, body.sent_once(route))

    async def in_turn(asking: Asking) -> Response:
        last = route

        async def send(at: Route) -> Response:
            nonlocal last
            last = at
            data = body.written_for(at)
            asking(at, hides(at))
            return await sent(at, data)

        try:
            answered, response = await ask(route, send)
        finally:
            body.let_go()
        if answered is not last:
            asking(answered, False)
        return response

    return once if route.settled else in_turn
