"""The header rules: whatever comes, what must not cross does not, and what crosses is as it came.

The input is a head, one header a line; a value may hold anything but LF (the two servers let less through).
"""

from __future__ import annotations

import re

from relay.protocol import credentials
from relay.protocol import headers as rules

KEY = "the-relays-own"
_NEVER_UP = re.compile(
    rb"connection|keep-alive|te|trailer|transfer-encoding|upgrade|proxy-.*|host|cookie|expect|last-event-id|relay-.*|"
    rb"forwarded|x-forwarded-.*|x-real-ip|x-original-.*|x-http-method.*|.*_.*"
)
_NEVER_DOWN = re.compile(
    rb"connection|keep-alive|te|trailer|transfer-encoding|upgrade|proxy-.*|set-cookie|alt-svc|relay-.*|server|"
    rb"access-control-.*|.*_.*"
)
_OF_THE_STREAM = re.compile(rb"content-.*|cache-control|transfer-encoding|relay-.*|x-accel-.*")
_LINE_ENDS = re.compile(rb"[\r\n\0]")


def one(data: bytes) -> None:
    given = head(data)
    lower = [(name.lower(), value) for name, value in given]
    hop = {token.strip().lower() for name, value in lower if name == b"connection" for token in value.split(b",")}
    hop -= {b"content-type"}

    for more in ((), ("*",)):
        up = rules.to_upstream(given, api_key=None, identity=True, length=7, request_id="req_1", more=more)
        assert up.count((b"content-length", b"7")) == 1
        assert up.count((b"accept-encoding", b"identity")) == 1
        assert [name for name, _ in up].count(b"content-length") == 1
        own = {(b"content-length", b"7"), (b"accept-encoding", b"identity"), (b"x-request-id", b"req_1")}
        assert {item for item in up if item not in own} <= set(lower), "a header that nobody sent"
        assert any(name == b"x-request-id" for name, _ in up)
        down = rules.to_client(given, more)
        assert set(down) <= set(lower)
        for _, value in down:
            assert not _LINE_ENDS.search(value)
        for name, _ in [item for item in up if item not in own] + down:
            assert name not in hop, "Connection names it, so it ends here"
        if not more:
            assert not [name for name, _ in up if _NEVER_UP.fullmatch(name)]
            assert not [name for name, _ in down if _NEVER_DOWN.fullmatch(name)]
            assert rules.to_client(down) == down, "a second relay behind it would see something else"

    keyed = rules.to_upstream(given, api_key=KEY, identity=False, length=None, request_id="req_1")
    shown = [(name, value) for name, value in keyed if name in (b"authorization", b"x-api-key", b"api-key")]
    assert shown in ([(b"authorization", b"Bearer " + KEY.encode())], [(b"x-api-key", KEY.encode())])

    for name, value in rules.of_stream(given, ("*",)):
        assert (name, value) in lower
        assert not _LINE_ENDS.search(value)
        assert name not in hop
        assert not _OF_THE_STREAM.fullmatch(name)
    for name, value in rules.of_stream(given):
        assert (name, value) in lower
        assert not _LINE_ENDS.search(value)
        assert name not in hop
        assert not _NEVER_DOWN.fullmatch(name)
        assert not name.startswith((b"content-", b"cache-"))

    request_id = rules.request_id(rules.value(given, b"x-request-id"))
    assert request_id is None or (0 < len(request_id) <= 128 and request_id.isprintable() and " " not in request_id)
    trace_id = rules.trace_id(rules.value(given, b"traceparent"))
    assert trace_id is None or re.fullmatch("[0-9a-f]{32}", trace_id)

    who = credentials.shown(given)
    assert credentials.shown(reversed(given)) == who, "the order of headers makes another owner"
    assert credentials.shown([(name.upper(), value) for name, value in given]) == who
    stranger = credentials.shown([*given, (b"x-api-key", b"a stranger's")])
    assert stranger != who or b"a stranger's" in who.split(b"\0")


def head(data: bytes) -> rules.Headers:
    lines = [line.partition(b":") for line in data.split(b"\n")]
    return [(name.strip(), value.strip()) for name, _, value in lines if name.strip()]
