"""What crosses between clients and an application of one's own."""

from __future__ import annotations

import pytest

from relay.protocol import application_headers as rules
from relay.protocol.headers import Headers

REQUEST: Headers = [
    (b"host", b"relay.example"),
    (b"cookie", b"session=a"),
    (b"origin", b"https://page.example"),
    (b"sec-fetch-site", b"cross-site"),
    (b"x-forwarded-for", b"1.2.3.4"),
    (b"authorization", b"Bearer own"),
    (b"anything", b"1"),
    (b"last-event-id", b"theirs"),
    (b"content-length", b"3"),
    (b"transfer-encoding", b"chunked"),
    (b"connection", b"x-hop"),
    (b"x-hop", b"1"),
    (b"expect", b"100-continue"),
    (b"accept-encoding", b"br"),
    (b"relay-ticket", b"off"),
    (b"relay-stream-name", b"n"),
    (b"relay-of-tomorrow", b"1"),
    (b"mcp-session-id", b"m"),
]
ANSWER: Headers = [
    (b"Set-Cookie", b"session=b"),
    (b"set-cookie", b"other=c"),
    (b"Access-Control-Allow-Origin", b"https://page.example"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'"),
    (b"x-accel-redirect", b"/file"),
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"connection", b"x-hop"),
    (b"x-hop", b"1"),
    (b"keep-alive", b"1"),
    (b"alt-svc", b"h3"),
    (b"relay-stream-id", b"st_x"),
    (b"x-split", b"a\r\nb: c"),
    (b"ratelimit-limit", b"1"),
    (b"mcp-session-id", b"m"),
]


def up(*, cookies: bool, api_key: str | None = None, more: tuple[str, ...] = ()) -> dict[bytes, bytes]:
    return dict(
        rules.to_application(REQUEST, cookies=cookies, api_key=api_key, length=3, request_id="req_1", more=more)
    )


def test_with_cookies_all_cross_but_what_is_one_hops_or_the_relays() -> None:
    found = up(cookies=True)
    gone = {b"host", b"transfer-encoding", b"connection", b"x-hop", b"expect"}
    assert found.keys() & gone == set()
    assert not [name for name in found if name.startswith(b"relay-")]
    assert {name for name, _ in REQUEST if not name.startswith(b"relay-")} - gone <= found.keys()
    assert found[b"accept-encoding"] == b"identity"
    assert found[b"x-forwarded-host"] == b"relay.example"
    assert found[b"content-length"] == b"3"


def test_a_name_that_a_proxy_has_given_stays() -> None:
    given = [*REQUEST, (b"x-forwarded-host", b"app.example")]
    found = rules.to_application(given, cookies=True, api_key=None, length=None, request_id="req_1")
    assert [value for name, value in found if name == b"x-forwarded-host"] == [b"app.example"]
    assert b"content-length" not in dict(found)


@pytest.mark.parametrize("cookies", [True, False])
def test_a_key_of_the_relays_takes_the_place_of_the_clients(cookies: bool) -> None:
    assert up(cookies=cookies, api_key="ours")[b"authorization"] == b"Bearer ours"


def test_without_cookies_the_lists_hold_and_what_a_page_may_do_crosses() -> None:
    found = up(cookies=False)
    assert found.keys() >= {b"origin", b"sec-fetch-site", b"last-event-id", b"authorization", b"mcp-session-id"}
    assert not found.keys() & {b"cookie", b"anything", b"x-forwarded-for", b"x-forwarded-host"}


def test_an_answer_crosses_whole_with_cookies() -> None:
    found = rules.to_client(ANSWER, cookies=True)
    assert [value for name, value in found if name == b"set-cookie"] == [b"session=b", b"other=c"]
    assert {b"content-security-policy", b"x-accel-redirect", b"content-type"} <= dict(found).keys()
    assert not dict(found).keys() & {b"x-hop", b"keep-alive", b"connection", b"alt-svc", b"relay-stream-id", b"x-split"}


def test_without_them_it_does_not() -> None:
    found = dict(rules.to_client(ANSWER, cookies=False))
    assert found[b"access-control-allow-origin"] == b"https://page.example"
    assert not found.keys() & {b"set-cookie", b"content-security-policy", b"x-accel-redirect", b"x-split"}


@pytest.mark.parametrize("cookies", [True, False])
def test_a_later_reader_of_a_stream_has_no_cookie_of_its_first(cookies: bool) -> None:
    first, later = rules.of_answer(ANSWER, cookies=cookies)
    assert (b"set-cookie" in dict(first)) is cookies
    assert b"mcp-session-id" in dict(first)
    assert not dict(later).keys() & {b"set-cookie", b"ratelimit-limit", b"mcp-session-id"}
    for found in (first, later):
        assert dict(found)[b"access-control-allow-origin"] == b"https://page.example"
        assert not dict(found).keys() & {b"content-type", b"cache-control", b"relay-stream-id", b"x-hop", b"x-split"}
