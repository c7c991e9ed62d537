"""Whose an application's stream is: every other value, and every other place of one, is another owner."""

from __future__ import annotations

import itertools

import pytest

from relay.auth.owners import NOBODY, of_key
from relay.auth.sources import identity
from relay.protocol.headers import Headers

SOURCES = ("authorization", "cookie:session", "header:x-user")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"cookie", b"other=alice")],
        [(b"cookie", b"session=")],
        [(b"cookie", b"xsession=alice")],
        [(b"cookie", b"session")],
        [(b"x-user", b" ")],
        [(b"x-api-key", b"alice")],
    ],
)
def test_who_shows_nothing_of_it_is_nobody(headers: Headers) -> None:
    assert identity(SOURCES, headers) == NOBODY


@pytest.mark.parametrize(
    "headers",
    [
        [(b"cookie", b"session=alice")],
        [(b"cookie", b"a=1; session=alice; b=2")],
        [(b"cookie", b"a=1"), (b"cookie", b" session = alice ;")],
    ],
)
def test_a_cookie_is_found_wherever_it_stands(headers: Headers) -> None:
    assert identity(SOURCES, headers) == identity(SOURCES, [(b"cookie", b"session=alice")]) != NOBODY


def test_no_two_of_these_are_one() -> None:
    seen = [
        [(b"authorization", b"alice")],
        [(b"authorization", b"Bearer alice")],
        [(b"cookie", b"session=alice")],
        [(b"cookie", b"session=Alice")],
        [(b"cookie", b"session=alice; session=alice")],
        [(b"cookie", b"session=alice; session=bob")],
        [(b"x-user", b"alice")],
        [(b"x-user", b"alice"), (b"cookie", b"session=alice")],
        [(b"x-user", b"alice"), (b"authorization", b"alice")],
        [(b"x-user", b"alicecookie:session")],
        [(b"cookie", b"session=alice"), (b"x-user", b"bob")],
        [(b"cookie", b"session=aliceheader:x-userbob")],
        [(b"x-user", b"alice"), (b"x-user", b"bob")],
    ]
    found = [identity(SOURCES, headers) for headers in seen]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert not {b"alice", b"Bearer alice", of_key("alice"), NOBODY} & set(found)


def test_other_sources_with_the_same_value_are_another_owner() -> None:
    headers = [(b"x-user", b"alice"), (b"x-name", b"alice")]
    assert identity(["header:x-user"], headers) != identity(["header:x-name"], headers)
    assert identity(["header:X-User"], headers) != NOBODY
