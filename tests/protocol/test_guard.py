"""Which browsers' requests come in where no credential says who asks."""

from __future__ import annotations

import pytest

from relay.protocol.errors import ApiError, HostNotAllowed, OriginNotAllowed, UnsupportedMediaType
from relay.protocol.guard import Guard, check_kind, hosts_of, is_loopback
from relay.protocol.headers import Headers


def head(**given: str) -> Headers:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:80", "[::1]:80", "127.1.2.3:80"])
def test_on_loopback_only_its_own_names_are_good(address: str) -> None:
    assert is_loopback(address)
    own = Guard(hosts_of(address, ()))
    for host in ("localhost", "127.0.0.1", "[::1]:8080", "LOCALHOST:1", address):
        own.check(head(host=host))
    for host in (
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "0.0.0.0",
    ):
        with pytest.raises(HostNotAllowed):
            own.check(head(host=host))
    with pytest.raises(HostNotAllowed):
        own.check([])
    with pytest.raises(HostNotAllowed):
        own.check([(b"host", b"localhost"), (b"host", b"evil.example")])


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "relay.example:80", "127.0.0.1.x:80"])
def test_elsewhere_a_proxy_may_give_it_any_name(address: str) -> None:
    assert not is_loopback(address)
    Guard(hosts_of(address, ())).check(head(host="api.example"))


def test_names_that_are_set_are_all_that_there_are() -> None:
    own = Guard(hosts_of("0.0.0.0:80", ["Relay.example", "*.inside:8080"]))
    for host in ("relay.example", "relay.example:443", "a.inside:8080"):
        own.check(head(host=host))
    for host in ("localhost", "a.inside:81", "xrelay.example"):
        with pytest.raises(HostNotAllowed):
            own.check(head(host=host))


HOST = "localhost:8080"


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({}, False),
        ({"origin": "http://localhost:8080"}, False),
        ({"origin": "https://localhost:8080"}, False),  # behind a proxy that speaks TLS
        ({"origin": "http://localhost:3000"}, True),
        ({"origin": "http://evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": "file://"}, True),
        ({"origin": "http://localhost:8080.evil.example"}, True),
        ({"sec_fetch_site": "none"}, False),
        ({"sec_fetch_site": "same-origin"}, False),
        ({"sec_fetch_site": "same-origin", "origin": "https://relay.example"}, False),  # a proxy has changed `Host`
        ({"sec_fetch_site": "same-site"}, True),
        ({"sec_fetch_site": "cross-site"}, True),
        ({"sec_fetch_site": "Cross-Site"}, True),
        ({"sec_fetch_site": "anything"}, True),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, True),
        ({"sec_fetch_site": "cross-site", "origin": "http://localhost:8080"}, True),
    ],
)
def test_pages_of_other_origins_stay_out_unless_cors_lets_them_in(more: dict[str, str], refused: bool) -> None:
    own = Guard(["localhost"])
    given = head(host=HOST, **more)
    own.check(given, allowed=True)
    if refused:
        with pytest.raises(OriginNotAllowed):
            own.check(given)
    else:
        own.check(given)


def test_cors_does_not_open_a_foreign_name() -> None:
    with pytest.raises(HostNotAllowed):
        Guard(["localhost"]).check(head(host="evil.example"), allowed=True)


def test_a_link_may_be_followed_where_that_is_allowed() -> None:
    given = head(host=HOST, sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    Guard(["localhost"]).check(given, navigates=True)


@pytest.mark.parametrize(
    ("kind", "json", "refused"),
    [
        ("application/json", True, False),
        ("Application/JSON; charset=utf-8", True, False),
        ("text/plain", True, True),
        ("text/plain;application/json", True, True),
        ("text/plain, application/json", True, True),
        ("application/x-www-form-urlencoded", True, True),
        ("multipart/form-data; boundary=x", True, True),
        ("", True, True),
        ("multipart/form-data; boundary=x", False, False),
        ("application/octet-stream", False, False),
        ("text/plain", False, True),
        ("", False, True),
    ],
)
def test_what_a_page_may_send_without_asking_is_no_json(kind: str, json: bool, refused: bool) -> None:
    error: ApiError | None = None
    try:
        check_kind(kind, json=json)
    except UnsupportedMediaType as found:
        error = found
    assert (error is not None) == refused
