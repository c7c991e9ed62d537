"""What a request calls its stream: in its `Relay-Stream-Name` header, or, for an application, in its body."""

from __future__ import annotations

import orjson

from relay.api.exchange import Exchange
from relay.config.applications import LONGEST_NAME, is_name, name_in_body
from relay.protocol.errors import BadRequest

HEADER = b"relay-stream-name"
_LARGEST_BODY = 4 << 20
"""A larger one is not parsed for its name: that would hold up other streams."""


def of_header(exchange: Exchange) -> str:
    """The name in the header, empty where there is none. Raises BadRequest."""
    said = exchange.named.get(HEADER)
    return "" if said is None else checked(said.decode("utf-8", "replace").strip(), "Relay-Stream-Name")


def checked(name: str, what: str) -> str:
    """Raises BadRequest for what cannot be a name."""
    if not is_name(name):
        raise BadRequest(f"`{what}` must be 1 to {LONGEST_NAME} characters that can be shown. Send a shorter one.")
    return name


def of_body(path: str | None, raw: bytes) -> str:
    """The name that a JSON body has at this place, empty where it has none."""
    if path is None or len(raw) > _LARGEST_BODY:
        return ""
    try:
        return name_in_body(path, orjson.loads(raw)) or ""
    except orjson.JSONDecodeError:
        return ""
