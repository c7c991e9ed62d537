"""Which headers cross between a client and an application of one's own (`apis: [sse]`).

With `cookies` all do, both ways, but for those of one hop and the relay's own: the application is as good as asked
directly, and judges its users by whatever it likes. It must not believe what a client says of itself in
`X-Forwarded-For` and the like, unless the proxy in front of the relay sets them anew. Without, the lists of
`relay.protocol.headers` hold. In either case what a page is allowed to do is the application's to say: `Origin`, the
preflight's questions, and `Access-Control-*` cross, and so do MCP's own headers.

Promise: what was for one answer alone (cookies, a session, rate limits) is in no later answer with its stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from relay.protocol import headers as rules
from relay.protocol.cors import Cors
from relay.protocol.headers import INCREMENTAL, Headers, value

_OF_APPLICATIONS = re.compile(rb"origin|access-control-request-.*|sec-fetch-.*|mcp-.*")
_TO_CLIENTS = re.compile(rb"access-control-.*|cross-origin-.*|timing-allow-origin|mcp-.*")
_NOT_UP = (rules.NOT_UPSTREAM - {b"cookie", b"last-event-id"}) | {b"content-length"}
_NOT_DOWN = rules.HOP_BY_HOP | {b"alt-svc"}
# What a stream says of itself, and what is no longer so when its events are sent again.
_NOT_OF_A_STREAM = re.compile(
    rb"content-.*|cache-control|pragma|expires|age|etag|last-modified|accept-ranges|date|server|incremental|relay-.*|"
    rb"x-accel-.*"
)
_ONCE = re.compile(rb"set-cookie|clear-site-data|www-authenticate|mcp-session-id")


def to_application(
    headers: Headers,
    *,
    cookies: bool,
    api_key: str | None,
    length: int | None,
    request_id: str,
    more: Sequence[str] = (),
) -> Headers:
    """The request's headers as they go to the application; as of `relay.protocol.headers.to_upstream`. A
    `Last-Event-ID` crosses, too: who calls this has seen that it is none of the relay's."""
    position = [(name, v) for name, v in headers if name == b"last-event-id"]
    if not cookies:
        crossing = rules.to_upstream(
            headers, api_key=api_key, identity=True, length=length, request_id=request_id, more=more, incremental=True
        )
        known = {name for name, _ in crossing}
        return (
            crossing
            + position
            + [item for item in headers if item[0] not in known and _OF_APPLICATIONS.fullmatch(item[0])]
        )
    dropped = _NOT_UP | rules.named_by_connection(headers) | {b"accept-encoding", INCREMENTAL[0]}
    if api_key is not None:
        dropped |= {b"authorization"}
    kept = [item for item in headers if item[0] not in dropped and not item[0].startswith(b"relay-")]
    if api_key is not None:
        kept.append((b"authorization", b"Bearer " + api_key.encode()))
    names = {name for name, _ in kept}
    host = value(headers, b"host")
    if b"x-forwarded-host" not in names and host is not None:  # what its checks compare a page's origin with
        kept.append((b"x-forwarded-host", host))
    if b"x-request-id" not in names:
        kept.append((b"x-request-id", request_id.encode()))
    kept += [(b"accept-encoding", b"identity"), INCREMENTAL]
    if length is not None:
        kept.append((b"content-length", b"%d" % length))
    return kept


def to_client(headers: Headers, *, cookies: bool, more: Sequence[str] = ()) -> Headers:
    """The headers of an answer that is no event stream."""
    if not cookies:
        crossing = rules.to_client(headers, more)
        known = {name for name, _ in crossing}
        return crossing + [item for item in _lower(headers) if item[0] not in known and _TO_CLIENTS.fullmatch(item[0])]
    dropped = _NOT_DOWN | rules.named_by_connection(headers)
    return [item for item in _lower(headers) if item[0] not in dropped and not item[0].startswith(b"relay-")]


def of_answer(headers: Headers, *, cookies: bool, more: Sequence[str] = ()) -> tuple[Headers, Headers]:
    """What a stream's first answer has of the application's headers, and what every later one has."""
    first = [
        item
        for item in to_client(headers, cookies=cookies, more=more)
        if not _NOT_OF_A_STREAM.fullmatch(item[0]) and (cookies or _TO_CLIENTS.fullmatch(item[0]))
    ]
    if not cookies:
        known = {name for name, _ in first}
        first += [item for item in rules.of_stream(headers, more) if item[0] not in known]
    first = Cors.expose(first)
    lasting = [item for item in first if not _ONCE.fullmatch(item[0])]
    return first, rules.of_resume(lasting, more)


def _lower(headers: Headers) -> Headers:
    return [(name.lower(), v) for name, v in headers if not rules.UNPRINTABLE.search(v)]
