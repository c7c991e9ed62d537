"""Which headers cross the relay, and which never do. Names are lower-case bytes.

Rules: both ways only what is on a list crosses: what HTTP says of a body and its kind, the APIs' own names,
credentials, traces, every `x-…` that is none of a proxy's, and what the upstream's `headers` names. Beside a key of the
relay's own the list is a short one, for whoever asks is then the relay's account to the upstream. Hop-by-hop headers
and those that `Connection` names end at each hop, whatever a list says (RFC 9110, section 7.6.1), but for the body's
kind; framing is each side's own. A relayed stream carries the relay's own headers, and of the upstream's those that
tell of the request and of who answers it: every `x-…` and the API's own, as a whole answer does, and what `headers`
names. They are kept with the stream, so a resume on any replica has them too, but for what was true at that moment only
(rate limits).

The relay believes no header about who its client is or what it asked for (`Forwarded`, `X-Forwarded-*`, `X-Real-IP`,
`X-Original-URL`, `X-HTTP-Method-Override` …), and passes none on: an upstream that trusts the relay would believe them.
Some servers read a `_` in a name as `-`: names with it cross only where the upstream's `headers` names them, and never
those that would be read as a credential, as framing or as one of these.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from relay.protocol import credentials
from relay.protocol.name_cache import LONGEST_NAME, NameCache

Headers = list[tuple[bytes, bytes]]

MAX_HEADER_BYTES = 32 * 1024
MAX_KEPT_BYTES = 16 * 1024
"""Of the upstream's headers that are kept with a stream; of more only the first answer has the largest."""

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
# No connection's, whatever it says (RFC 9110, section 7.6.1): without it a body is read as whatever it looks like.
_OF_THE_BODY = frozenset((b"content-type",))
_FOR_THE_RELAY = frozenset((b"relay-ticket", b"relay-event-ids", b"relay-abandon-after", b"relay-stream-name"))
NOT_UPSTREAM = HOP_BY_HOP | _FOR_THE_RELAY | {b"host", b"last-event-id", b"expect", b"cookie"}
_NOT_TO_CLIENT = HOP_BY_HOP | {b"set-cookie", b"alt-svc"}

# What a proxy, a CDN or a hosting platform in front obeys in an answer: files that it sends, addresses that it goes to,
# what it keeps and for how long, whether it takes the relay for healthy.
_OBEYED = (
    rb"x-accel-(?!buffering).*|x-sendfile.*|x-lighttpd-.*|x-litespeed-.*|x-lsadc-.*|x-reproxy-.*|x-offload-.*|x-uwsgi-.*|"
    rb"x-appengine-.*|x-middleware-.*|x-nextjs-.*|x-envoy-.*|x-haproxy-.*|x-traefik-.*|x-varnish.*|x-esi.*|x-do-esi|"
    rb"x-ban-.*|x-purge.*|x-invalidat.*|x-cache-(?:tag|key|control|ttl|group|expir).*|x-drupal-.*|x-magento-.*|x-key|xkey|"
    rb"x-fastly-.*|x-akamai-.*|x-vercel-(?!id$|cache$|ai-).*|x-netlify-.*|x-now-.*|x-render-.*|x-edge-.*|x-azure-.*|"
    rb"x-arr-.*|arr-.*|"
    rb"surrogate-.*|edge-.*|cache-tags?|(?:.+-)?cdn-cache-control|(?!openai-|anthropic-)[a-z]+-cache-(?:control|tags?)|"
    rb"akamai-.*|fastly-.*|fly-.*|x-internal-redirect|x-redirect-.*"
)
_OF_PROXIES = re.compile(
    rb"(x-forwarded.*|x-real-ip|x-original-.*|x-rewrite-url|x-http-method.*|x-method-override|"
    rb"x-client-ip|x-cluster-client-ip|x-remote-.*|x-proxy.*|" + _OBEYED + rb")"
)
# Never beside the relay's own, which is stricter; nor what proxies obey, whatever a pattern takes.
_NOT_OF_AN_ANSWER = re.compile(
    rb"content-security-policy.*|x-content-security-policy.*|x-webkit-csp.*|relay-.*|" + _OBEYED
)
_UPSTREAM_LIST = re.compile(
    rb"(incremental|accept|accept-encoding|accept-language|authorization|api-key|baggage|cache-control|content-.*|http-referer|"
    rb"idempotency-key|if-.*|last-modified|origin|prefer|priority|range|referer|traceparent|tracestate|user-agent|"
    rb"(session|thread|conversation|turn)-id|originator|version|chatgpt-.*|x-.*|openai-.*|anthropic-.*)"
)
_CLIENT_LIST = re.compile(
    rb"(incremental|accept-ranges|age|allow|cache-control|cf-ray|content-.*|date|deprecation|etag|expires|last-modified|link|location|"
    rb"preference-applied|ratelimit.*|request-id|retry-after.*|sunset|server-timing|traceresponse|vary|via|warning|"
    rb"www-authenticate|x-.*|openai-.*|anthropic-.*)"
)
# What goes along beside a key of the relay's own: what HTTP says of the body and the answer, traces, and by what agents
# name their session. Nothing here chooses an account, a feature, a provider or a host.
_BESIDE_OWN_KEY = re.compile(
    rb"(incremental|accept|accept-encoding|accept-language|baggage|cache-control|content-.*|http-referer|idempotency-key|if-.*|"
    rb"last-modified|prefer|priority|range|referer|traceparent|tracestate|user-agent|anthropic-version|"
    rb"anthropic-dangerous-direct-browser-access|x-request-id|x-client-request-id|x-correlation-id|x-stainless-.*|x-title|"
    rb"x-app|x-b3-.*|b3|(?:session|thread|conversation|turn)-id|originator|version|x-session-id|x-session-affinity|x-claude-code-session-id|"
    rb"x-codex-.*)"
)
_STREAM_LIST = re.compile(
    rb"(request-id|retry-after.*|ratelimit.*|cf-ray|server-timing|traceresponse|deprecation|sunset|warning|"
    rb"x-.*|openai-.*|anthropic-.*)"
)
# True when the answer began, and misleading to who comes back later.
_OF_THE_MOMENT = re.compile(rb"retry-after.*|.*ratelimit.*|server-timing|openai-processing-ms")
_lasts = NameCache(lambda name: not _OF_THE_MOMENT.fullmatch(name))
_NONE = re.compile(rb"(?!)")
# Nothing that could be read as the end of a header's line: h2 sends values as they are, and a proxy may speak HTTP/1.1.
UNPRINTABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

# Nothing in a head may be read as the end of its line.
_LINES = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*")

# What a name with `_` must not be read as.
_NO_TWIN = re.compile(
    b"|".join(map(re.escape, sorted(NOT_UPSTREAM | _NOT_TO_CLIENT | credentials.HEADERS)))
    + rb"|content-.*|"
    + _OF_PROXIES.pattern
)
# What a relayed stream says of itself, whatever a pattern takes.
_OF_THE_STREAM = re.compile(
    rb"content-.*|cache-control|pragma|expires|age|etag|last-modified|accept-ranges|date|vary|incremental|relay-.*|"
    rb"x-accel-.*|access-control-.*"
)

INCREMENTAL = (b"incremental", b"?1")
"""Hand on what comes as it comes (RFC 10036): of every event stream, and of a request for one."""

_is_connection = NameCache(lambda name: name.lower() == b"connection")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def lines_of(headers: Headers) -> bytes:
    """A head's fields as HTTP/1.1 has them (RFC 9112, section 5). Raises ValueError for what is none."""
    lines = b"".join([b"%b: %b\r\n" % item for item in headers])
    if lines.count(b"\n") != len(headers) or not _LINES.fullmatch(lines):
        raise ValueError("a header's name or value is malformed")
    return lines


def value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The only value of a header, None where it is absent. Several are joined with `, ` (RFC 9110, section 5.3)."""
    found = [v for k, v in headers if k.lower() == name]
    return b", ".join(found) if found else None


def named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The headers that are of one hop because `Connection` names them."""
    listed = [v for name, v in headers if _is_connection[name]]
    if not listed:
        return set()
    return {token.strip().lower() for v in listed for token in v.split(b",")} - _OF_THE_BODY


def request_id(given: bytes | None) -> str | None:
    """The `X-Request-Id` that a client or a proxy in front gave, where it is fit for a log line."""
    return given.decode() if given is not None and _REQUEST_ID.fullmatch(given) else None


def trace_id(traceparent: bytes | None) -> str | None:
    """The trace that a request belongs to (W3C Trace Context, section 3.2)."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    return found[1].decode() if found else None


def _listed(name: bytes, pattern: re.Pattern[bytes], more: Sequence[str]) -> bool:
    """Is it on the list, or named? What is longer than every API's names crosses only where it is named."""
    if b"_" in name:
        return _named(name, more) and not _NO_TWIN.fullmatch(name.replace(b"_", b"-"))
    if len(name) <= LONGEST_NAME and pattern.fullmatch(name) and not _OF_PROXIES.fullmatch(name):
        return True
    return _named(name, more) and not _is_obeyed(name)


def _is_obeyed(name: bytes) -> bool:
    return _NOT_OF_AN_ANSWER.fullmatch(name[:LONGEST_NAME].replace(b"_", b"-")) is not None


def _named(name: bytes, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.decode("latin-1"), pattern.lower()) for pattern in patterns)


def to_upstream(
    headers: Headers,
    *,
    api_key: str | None,
    identity: bool,
    length: int | None,
    request_id: str,
    more: Sequence[str] = (),
    incremental: bool = False,
) -> Headers:
    """The request's headers as they go upstream, `traceparent` and `tracestate` among them.

    Args:
        headers: as the client sent them.
        api_key: takes the place of the client's credential, in the form in which that came (`x-api-key` or
            `Authorization`); None leaves the client's own.
        identity: ask for an answer without compression (RFC 9110, section 12.5.3).
        length: of the body in bytes where it was read whole, None where it is streamed.
        request_id: goes along where the client sent none of its own.
        more: patterns of further headers that go along (`upstreams[].headers`). Beside `api_key` a header that may
            hold a credential does only where it is named in full.
        incremental: it asks for an event stream.
    """
    dropped = named_by_connection(headers)
    if identity:
        dropped |= {b"accept-encoding"}
    if incremental:
        dropped |= {INCREMENTAL[0]}
    if length is not None:
        dropped |= {b"content-length"}
    crossing = _to_upstream(api_key is not None, tuple(more))
    kept = [(name, v) for given, v in headers if (name := crossing[given]) and name not in dropped]
    if api_key is not None:
        names = {name.lower() for name, _ in headers} - dropped
        by_key = b"x-api-key" in names or b"anthropic-version" in names
        key = api_key.encode()
        kept.append((b"x-api-key", key) if by_key else (b"authorization", b"Bearer " + key))
    if b"x-request-id" not in [name for name, _ in kept]:
        kept.append((b"x-request-id", request_id.encode()))
    if identity:
        kept.append((b"accept-encoding", b"identity"))
    if incremental:
        kept.append(INCREMENTAL)
    if length is not None:
        kept.append((b"content-length", b"%d" % length))
    return kept


def to_client(headers: Headers, more: Sequence[str] = ()) -> Headers:
    """The headers of a passed-through answer. A value that could be read as the end of its line goes no further (RFC
    9110, section 5.5).

    Args:
        headers: as the upstream sent them.
        more: patterns of further headers that go along (`upstreams[].headers`).
    """
    return _crossing(headers, _to_client(tuple(more)))


def of_stream(headers: Headers, more: Sequence[str] = ()) -> Headers:
    """What a relayed stream has of the upstream's headers; `more` as of `to_client`."""
    return _crossing(headers, _of_streams(tuple(more)))


def of_resume(of_stream: Headers, more: Sequence[str] = ()) -> Headers:
    """What every later answer with the stream has of these, in all no more than `MAX_KEPT_BYTES`."""
    kept = [item for item in of_stream if _lasts[item[0]] or (more and _named(item[0], more))]
    left = MAX_KEPT_BYTES - sum(map(_line_bytes, kept))
    for item in sorted(kept, key=_line_bytes, reverse=True) if left < 0 else ():
        kept.remove(item)
        left += _line_bytes(item)
        if left >= 0:
            break
    return kept


def of_answer(headers: Headers, more: Sequence[str] = ()) -> tuple[Headers, Headers]:
    """What a relayed stream's first answer has of the upstream's headers, and what every later one has."""
    first = of_stream(headers, more)
    return first, of_resume(first, more)


def _line_bytes(item: tuple[bytes, bytes]) -> int:
    return len(item[0]) + len(item[1]) + len(":\r\n")


# Below, what is said of a name is the name in lower case where it crosses, else empty. `more` is of the settings.


def _crossing(headers: Headers, names: NameCache[bytes]) -> Headers:
    """Those of an answer that cross, by their names and for all that their values are."""
    dropped = named_by_connection(headers)
    return [
        (name, v)
        for given, v in headers
        if (name := names[given]) and name not in dropped and not UNPRINTABLE.search(v)
    ]


@functools.cache
def _to_upstream(own_key: bool, more: tuple[str, ...]) -> NameCache[bytes]:
    listed = _BESIDE_OWN_KEY if own_key else _UPSTREAM_LIST
    in_full = {name.lower().encode() for name in more} - credentials.HEADERS

    def say(given: bytes) -> bytes:
        name = given.lower()
        of_relay = own_key and name not in in_full and credentials.is_header(name)
        return name if name not in NOT_UPSTREAM and _listed(name, listed, more) and not of_relay else b""

    return NameCache(say)


@functools.cache
def _to_client(more: tuple[str, ...]) -> NameCache[bytes]:
    def say(given: bytes) -> bytes:
        name = given.lower()
        crosses = name not in _NOT_TO_CLIENT and _listed(name, _CLIENT_LIST, more) and not _is_obeyed(name)
        return name if crosses else b""

    return NameCache(say)


@functools.cache
def _of_streams(more: tuple[str, ...]) -> NameCache[bytes]:
    def say(given: bytes) -> bytes:
        name = given.lower()
        listed = _listed(name, _STREAM_LIST, ()) and not _OF_THE_STREAM.fullmatch(name) and not _is_obeyed(name)
        named = name not in _NOT_TO_CLIENT and _listed(name, _NONE, more)
        return name if listed or (named and not _OF_THE_STREAM.fullmatch(name.replace(b"_", b"-"))) else b""

    return NameCache(say)
