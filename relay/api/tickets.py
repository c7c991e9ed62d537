"""Tickets: one stream, for a while, for who holds no credential.

A backend starts a generation with its key and hands the browser the address in `Relay-Stream-Url`; a plain
`EventSource` reads it and comes back by itself, as long as the stream may run and `tickets.ttl` beyond. A ticket is
`<expiry>.<scope>.<mac>`: Unix seconds, `r` or `rs` (read, read and stop), and an HMAC over both and the stream's id
with the secret that the replicas share.
"""

from __future__ import annotations

import hmac
import re
import time
from urllib.parse import parse_qs

from relay.api import askers
from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.auth.owners import TICKET_HOLDER, Principal, Use
from relay.protocol.errors import BadRequest, TicketRefused
from relay.protocol.headers import Headers

_SCOPES = {"off": "", "read": "r", "read+stop": "rs"}
_TICKET = re.compile(r"([0-9]{1,12})\.(r|rs)\.([0-9a-f]{64})")


def scope_of(services: Services, exchange: Exchange) -> str:
    """What the ticket of a new stream allows: as the request says, else as the settings do. Raises BadRequest."""
    asked = exchange.header(b"relay-ticket") or services.settings.tickets.scope
    if asked not in _SCOPES:
        raise BadRequest("`Relay-Ticket` must be off, read or read+stop. Send one of these, or no such header.")
    return _SCOPES[asked]


def url_header(services: Services, stream: str, scope: str) -> Headers:
    """`Relay-Stream-Url` for a stream; none for an empty scope."""
    if not scope:
        return []
    return [(b"relay-stream-url", _url(services, stream, _expiry(services), scope).encode())]


def _expiry(services: Services) -> str:
    """No stream that runs outlives its ticket, however long it may run."""
    settings = services.settings
    return str(int(time.time() + settings.streams.max_duration + settings.tickets.ttl))


def _url(services: Services, stream: str, expiry: str, scope: str) -> str:
    return f"/streams/{stream}?ticket={expiry}.{scope}.{_mac(services, stream, expiry, scope)}"


def issue(services: Services, exchange: Exchange, stream: str) -> tuple[Headers, dict[str, object]]:
    """A ticket that its owner asks for: the header and the body of the answer. Raises BadRequest."""
    scope = scope_of(services, exchange)
    if not scope:
        raise BadRequest("Tickets are off here unless a request asks for one. Send `Relay-Ticket: read` or read+stop.")
    expiry = _expiry(services)
    url = _url(services, stream, expiry, scope)
    said = next(word for word, kept in _SCOPES.items() if kept == scope)
    body = {"object": "relay.ticket", "stream": stream, "url": url, "scope": said, "expires_at": int(expiry)}
    return [(b"relay-stream-url", url.encode())], body


async def authenticate(services: Services, exchange: Exchange, stream: str, *, stop: bool) -> Principal:
    """Who asks for a stream: the holder of a ticket, else of a credential. Raises TicketRefused, InvalidApiKey,
    StoreUnavailable."""
    shown = parse_qs(exchange.query, keep_blank_values=True).get("ticket")
    if shown is None:
        exchange.caller = await askers.of_stream(services, exchange, stream)
        return exchange.caller.identity
    await services.registry.owners.know_secret()
    match = _TICKET.fullmatch(shown[-1])
    expiry, scope, mac = match.groups() if match else ("0", "r", "")
    if not hmac.compare_digest(mac, _mac(services, stream, expiry, scope)):
        raise TicketRefused("The ticket is not one for this stream. Ask the application for a new address.")
    if int(expiry) < time.time():
        raise TicketRefused("The ticket has expired. Ask the application for a new address.", code="ticket_expired")
    if stop and "s" not in scope:
        raise TicketRefused(
            "The ticket lets you read this stream, not stop it. Ask the application for one with read+stop.",
            code="ticket_read_only",
        )
    return TICKET_HOLDER


def _mac(services: Services, stream: str, expiry: str, scope: str) -> str:
    return services.registry.owners.digest(Use.TICKET, stream.encode(), expiry.encode(), scope.encode())
