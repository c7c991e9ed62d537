"""An application of one's own: every event stream that it answers with on its paths is one that can be resumed.

Whether a request asks for a stream only its answer tells. So no client is promised one before the application has
answered, whatever `streams.patience` says; what is no event stream goes to the client as it is. A `Last-Event-ID` in
the relay's form is a resume, any other one is the application's own.
"""

from __future__ import annotations

import secrets

from relay.api import application_body, generate, listing, passed_events, resume, stream_names, unread
from relay.api.attaching import Attaching
from relay.api.calling import Request
from relay.api.exchange import Exchange
from relay.api.joining import Joining
from relay.api.outgoing import upstream_request
from relay.api.passthrough import relay_response
from relay.api.services import Services
from relay.config import UpstreamSettings
from relay.config.applications import name_in_path
from relay.protocol import application_headers
from relay.protocol.apis import APPLICATION
from relay.protocol.application import Application
from relay.protocol.errors import IdempotencyKeyInFlight, TooManyRequests, Unavailable
from relay.protocol.ids import new_stream_id, parse_event_id
from relay.protocol.json_rpc import requests_of
from relay.streams.answer import is_stream
from relay.upstream.client import body_of
from relay.upstream.routing import Route

# Whatever is answered to these has no event to resume at.
_NO_STREAMS = ("HEAD", "OPTIONS")
# With it a GET opens what an MCP server has to say by itself, or goes on with what it keeps: its events have no end,
# are for this connection alone, and have ids of the server's.
_MCP_SESSION = b"mcp-session-id"


async def serve(services: Services, exchange: Exchange, upstream: UpstreamSettings) -> None:
    """For a caller who is known."""
    position = exchange.header(b"last-event-id")
    is_ours = position is not None and parse_event_id(position) is not None
    named = name_in_path(upstream.resume, exchange.target) if exchange.method == "GET" else None
    if is_ours and exchange.method not in _NO_STREAMS:
        await resume.by_post(services, exchange, APPLICATION)
    elif named is not None:
        await exchange.discard_body()
        name = stream_names.checked(named, "{name}")
        await listing.newest(services, exchange, [exchange.caller], name, live=True)
    elif exchange.method in _NO_STREAMS or (exchange.method == "GET" and exchange.header(_MCP_SESSION) is not None):
        await _pass(services, exchange, upstream)
    else:
        await _ask(services, exchange, upstream)


async def _ask(services: Services, exchange: Exchange, upstream: UpstreamSettings) -> None:
    attaching = Attaching(services, exchange, abandon_after := unread.abandon_after(services, exchange))
    attaching.drop()  # an application's requests are joined by their Idempotency-Key alone
    slot = services.gate.admit(exchange.caller, may_join=Joining.is_possible(exchange, attaching))
    try:
        raw, body = await application_body.read(services, exchange)
        slot.body_read()
        request = await _request(services, exchange, upstream, raw, body, attaching)
        del raw
        dialect = Application((upstream.end or "").encode(), request.rpc)
        assert request.joining is not None
        await generate.stream(services, exchange, dialect, request, request.joining, slot, abandon_after)
    except (TooManyRequests, Unavailable, IdempotencyKeyInFlight):
        slot.refund()
        raise
    finally:
        slot.release()


async def _request(
    services: Services,
    exchange: Exchange,
    upstream: UpstreamSettings,
    raw: bytes,
    body: application_body.ApplicationBody,
    attaching: Attaching,
) -> Request:
    registry = services.registry
    caller = exchange.caller
    name = stream_names.of_header(exchange) or stream_names.of_body(upstream.stream_name, raw)
    # Visitors who show nothing are many, and no one owner, whose limits they would have together.
    visitor = b"" if caller.can_come_back else secrets.token_bytes(16)
    owner = await registry.owners.of_new_stream(
        caller.identity + visitor, may_degrade=services.settings.store.outage == "degrade"
    )
    route = Route(upstream, "", "other")
    logged = upstream.buffer
    if logged:
        await registry.check_store()
        if not registry.owners.secret_known:
            route.meter(services.metrics, "sse").degraded()
            logged = False
    stream = new_stream_id(logged=logged)
    said = raw
    if exchange.header(b"idempotency-key") is not None:  # the same request is one with the same method and query, too
        said = b"%b ?%b\n%b" % (exchange.method.encode(), exchange.query.encode("latin-1"), raw)
    joining = Joining(services, exchange, stream, said, owner if caller.can_come_back else stream, attaching)
    return Request(
        route, body, owner, stream, joining, name=name if caller.can_come_back else None, rpc=requests_of(raw)
    )


async def _pass(services: Services, exchange: Exchange, upstream: UpstreamSettings) -> None:
    """A request whose answer is no event stream of the relay's."""
    with services.gate.acquire(exchange.caller):
        exchange.caller.check_path(exchange.method, exchange.scope["path"], exchange.target)
        await exchange.discard_body()
        exchange.take_headers([item for item in exchange.headers if item[0] != b"content-length"])
        route = Route(upstream, "", "other")
        request = upstream_request(services, exchange, route, "sse", identity=True, length=None)
        response = await exchange.unless_gone(request.send(b""))
        head = application_headers.to_client(response.headers.raw, cookies=upstream.cookies, more=upstream.headers)
        if exchange.method != "GET" or not is_stream(response, "sse"):
            await relay_response(exchange, response, upstream.headers, head)
            return
        try:
            meter = route.meter(services.metrics, "sse")
            await passed_events.deliver(exchange, response, upstream.headers, meter, services.settings, head)
        finally:
            await body_of(response).aclose()
