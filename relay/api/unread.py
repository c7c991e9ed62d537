"""`Relay-Abandon-After`: for how long a generation is to go on unread after this reader, in place of
`streams.abandon_after`; `0s` for a client whose Stop is to close."""

from __future__ import annotations

from relay.api.exchange import Exchange
from relay.api.services import Services
from relay.config.units import parse_duration
from relay.protocol.errors import BadRequest

HEADER = b"relay-abandon-after"


def abandon_after(services: Services, exchange: Exchange) -> float | None:
    """In seconds, no more than `streams.abandon_limit`; None where the request does not say. Raises BadRequest."""
    said = exchange.named.get(HEADER)
    if said is None:
        return None
    try:
        return min(parse_duration(said.decode("latin-1")), services.settings.streams.abandon_limit)
    except ValueError:
        raise BadRequest(
            "`Relay-Abandon-After` must be one duration, a number with ms, s, m, h or d, such as 0s or 15m. Send one, "
            "or no such header."
        ) from None
