"""Which pages may call the relay from a browser (WHATWG Fetch, "CORS protocol"). Without origins: none.

Never with credentials mode: the relay knows no cookies, and what authorises is a header or a ticket.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.protocol.headers import Headers, value

_EXPOSED = (
    b"relay-stream-id, relay-resumable, relay-heartbeat, relay-stream-url, relay-continued, location, retry-after, "
    b"request-id, x-request-id"
)
_METHODS = b"GET, POST, DELETE"
_SECONDS = b"600"


class Cors:
    """`origins` as browsers send them, or `*` for every one."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def allow(self, headers: Headers) -> Headers:
        """The headers of an answer to a page of an allowed origin; empty for all others."""
        if not self._origins:
            return []
        origin = value(headers, b"origin")
        if origin is None or not (b"*" in self._origins or origin in self._origins):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]

    @staticmethod
    def is_preflight(method: str, headers: Headers) -> bool:
        """Is this a CORS-preflight request (Fetch standard, "CORS-preflight request")?"""
        return method == "OPTIONS" and value(headers, b"access-control-request-method") is not None

    @staticmethod
    def preflight(headers: Headers) -> Headers:
        """The headers of a preflight's answer: any header may be sent, since whatever a client sends goes upstream.

        It is good for 600 seconds (`Access-Control-Max-Age`).
        """
        return [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", value(headers, b"access-control-request-headers") or b""),
            (b"access-control-max-age", _SECONDS),
        ]
