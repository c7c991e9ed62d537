"""Whom an answer on the path of an application lets read it."""

from __future__ import annotations

import pytest

from relay.protocol.cors import Cors
from relay.protocol.headers import Headers, value

PAGE, OTHER = b"https://page.example", b"https://other.example"
ALLOWED, CREDENTIALS = b"access-control-allow-origin", b"access-control-allow-credentials"
KEPT: Headers = [(ALLOWED, PAGE), (CREDENTIALS, b"true"), (b"x-own", b"1")]


def own(origin: bytes, *origins: str) -> Headers:
    return Cors(origins).allow_own([(b"origin", origin)])


def test_cookies_may_be_shown_by_an_origin_that_is_named() -> None:
    assert value(own(OTHER, OTHER.decode()), CREDENTIALS) == b"true"
    assert value(own(OTHER, "*"), ALLOWED) == OTHER
    assert value(own(OTHER, "*"), CREDENTIALS) is None
    assert own(PAGE, OTHER.decode()) == Cors([OTHER.decode()]).allow_own([]) == []


@pytest.mark.parametrize("named", [OTHER.decode(), "*"])
def test_a_later_page_gets_no_credentials_of_an_earlier_one(named: str) -> None:
    found = Cors.of_resume(KEPT, own(OTHER, named))
    assert [v for name, v in found if name == ALLOWED] == [OTHER]
    assert value(found, CREDENTIALS) is None
    assert value(found, b"x-own") == b"1"
    assert value(Cors.of_resume([], own(OTHER, named)), ALLOWED) == OTHER


def test_what_the_application_allowed_holds() -> None:
    assert Cors.of_resume(KEPT, own(PAGE, "*")) == KEPT
    assert Cors.of_resume(KEPT, []) == KEPT
    everyone: Headers = [(ALLOWED, b"*")]
    assert Cors.of_resume(everyone, own(OTHER, "*")) == everyone


def test_what_is_said_already_is_not_said_again() -> None:
    assert Cors.of_own(KEPT, own(OTHER, "*")) == KEPT
    assert value(Cors.of_own([], own(OTHER, "*")), ALLOWED) == OTHER


@pytest.mark.parametrize("named", [None, b"X-Own", b"*"])
def test_the_relays_headers_are_exposed_beside_the_applications(named: bytes | None) -> None:
    exposes = b"access-control-expose-headers"
    found = Cors.expose([*KEPT, *([(exposes, named)] if named else [])])
    names = (value(found, exposes) or b"").split(b", ")
    assert {b"relay-stream-id", b"relay-resumable", *([named] if named else [])} <= set(names)
    assert len([name for name, _ in found if name == exposes]) == 1
    assert Cors.expose([(b"x-own", b"1")]) == [(b"x-own", b"1")]
