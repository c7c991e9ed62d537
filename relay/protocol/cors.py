"""Which pages may call the relay from a browser (WHATWG Fetch, "CORS protocol"). Without origins: none.

Never with credentials mode: what authorises is a header or a ticket. But for what the relay itself answers on the paths
of an application (`apis: [sse]`), whose pages may show cookies: a refusal tells them nothing but its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.protocol.headers import Headers, value

_EXPOSED = (
    b"relay-stream-id, relay-resumable, relay-heartbeat, relay-stream-url, relay-continued, location, retry-after, "
    b"request-id, x-request-id"
)
_ALLOWED = b"access-control-allow-origin"
_EXPOSES = b"access-control-expose-headers"
_CREDENTIALS = (b"access-control-allow-credentials", b"true")
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
            (_ALLOWED, origin),
            (_EXPOSES, _EXPOSED),
            (b"vary", b"origin"),
        ]

    def allow_own(self, headers: Headers) -> Headers:
        """The headers of an answer of the relay's own on a path of an application, which says of all others itself who
        may see them. An origin that is named may show cookies, too."""
        allowed = self.allow(headers)
        if allowed and value(headers, b"origin") in self._origins:
            allowed.append(_CREDENTIALS)
        return allowed

    @staticmethod
    def of_own(headers: Headers, own: Headers) -> Headers:
        """The headers of an answer of the relay's own, with `own` where nothing is said yet."""
        return [*headers, *own] if own and value(headers, _ALLOWED) is None else headers

    @staticmethod
    def of_resume(kept: Headers, own: Headers) -> Headers:
        """What a later reader has of an application's headers. `kept` allow what the application allowed the first
        reader's page: no other one gets that, and what `own` (`allow_own`) allows another page is without cookies, for
        those are the application's to judge."""
        if not own or value(kept, _ALLOWED) in (b"*", value(own, _ALLOWED)):
            return kept
        others = [item for item in kept if not item[0].startswith(b"access-control-")]
        return others + [item for item in own if item != _CREDENTIALS]

    @staticmethod
    def expose(headers: Headers) -> Headers:
        """The headers of a stream that an application lets a page read: the page sees those of the relay's, too."""
        if value(headers, _ALLOWED) is None:
            return headers
        named = [value(headers, _EXPOSES), _EXPOSED]
        others = [item for item in headers if item[0] != _EXPOSES]
        return [*others, (_EXPOSES, b", ".join(filter(None, named)))]

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
