"""What is kept with a stream so that another replica can go on with it."""

from __future__ import annotations

import random

import pytest

from relay.protocol.legs import RELAY, RESPONSES, UNKNOWN, Leg, Offsets, Shown, decode_leg, position_at

LEG = Leg(RELAY, "far", "st_1", "api-version=2", choices=3, hides_usage=True)


def test_a_leg_is_read_as_it_was_written() -> None:
    for leg in (LEG, Leg(RESPONSES, "openai")):
        assert decode_leg(leg.encode()) == leg


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"relay"',
        LEG.encode()[:-1],
        LEG.encode().replace(b'"relay"', b'"carrier-pigeon"'),
        LEG.encode().replace(b'"st_1"', b"1"),
        LEG.encode().replace(b"3", b"true"),
        LEG.encode().replace(b"3", b'"3"'),
        LEG.encode().replace(b'"far"', b"null"),
    ],
)
def test_what_is_none_is_none(text: bytes) -> None:
    assert decode_leg(text) is None


@pytest.mark.parametrize(
    ("shown", "query"),
    [
        (None, "api-version=2"),
        (Shown([]), "api-version=2"),
        (Shown([], "last_event_id=st_1.4&key=sk-1"), "api-version=2&key=sk-1"),
        (Shown([], "api_key=a;x=1"), "api-version=2&api_key=a"),
    ],
)
def test_who_asks_again_brings_the_credentials(shown: Shown | None, query: str) -> None:
    assert LEG.query_for(shown) == query


@pytest.mark.parametrize(
    ("note", "top", "position"),
    [
        ("", 0, 0),
        ("", 7, 7),
        ("3:4", 3, 4),
        ("3:4", 9, 10),
        ("3:4", 2, None),
        (UNKNOWN, 5, None),
        ("3", 5, None),
        ("3:", 5, None),
        (":3", 5, None),
        ("a:3", 5, None),
        ("3:-4", 5, None),
        ("²:3", 5, None),
        ("1:" + "9" * 50, 5, None),
    ],
)
def test_where_the_upstream_stands(note: str, top: int, position: int | None) -> None:
    assert position_at(note, top) == position


def test_nothing_is_noted_of_an_upstream_that_counts_alike() -> None:
    offsets = Offsets()
    for n in range(1, 100):
        offsets.know(n, n)
        assert offsets.note(n) == ""
    assert offsets.note(50) == ""


def test_in_an_answer_that_leaves_one_out_it_is_not_known_where() -> None:
    offsets = Offsets()
    offsets.know(10, 10)
    offsets.know(14, 15)  # of five events that came together one is hidden
    found = {n: position_at(offsets.note(n), n) for n in (9, 10, 11, 13, 14, 20)}
    assert found == {9: 9, 10: 10, 11: None, 13: None, 14: 15, 20: 21}


def test_a_successor_begins_where_the_log_ends() -> None:
    assert Offsets(10, 10).note(10) == ""
    offsets = Offsets(10, 12)
    assert offsets.note(10) == "10:12"
    offsets.know(11, 13)
    assert position_at(offsets.note(11), 11) == 13


@pytest.mark.parametrize("seed", range(200))
def test_what_is_noted_is_true_or_unknown(seed: int) -> None:
    """Events come in batches, some of them are left out, and the log may end anywhere."""
    chance = random.Random(seed)
    offsets, true, theirs = Offsets(), {0: 0}, 0
    for _ in range(chance.randint(1, 30)):
        before = len(true) - 1
        for _ in range(chance.randint(1, 6)):
            theirs += 1
            if chance.random() > 0.1:
                true[len(true)] = theirs
        own = len(true) - 1
        offsets.know(own, theirs)
        for upto in range(before + 1, own + 1):
            found = position_at(offsets.note(upto), upto)
            exact = upto == own
            # What is left out behind event `upto` the upstream may send again, and is left out again.
            assert found is None or found == true[upto] or (exact and true[upto] <= found == theirs)
            assert found is not None or not exact
