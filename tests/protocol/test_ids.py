"""Ids name their stream, cannot be guessed, and stay inside what a Last-Event-ID may hold without a preflight."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.ids import (
    EventId,
    is_logged,
    is_stream_id,
    new_stream_id,
    parse_event_id,
)

STREAM = "st_" + "Aa0_-" * 4 + "Zz"


@pytest.mark.parametrize("logged", [True, False])
def test_a_new_id(logged: bool) -> None:
    stream = new_stream_id(logged=logged)
    assert re.fullmatch(r"st_[A-Za-z0-9_-]+", stream)
    assert is_stream_id(stream)
    assert is_logged(stream) is logged
    assert parse_event_id(f"{stream}.7") == EventId(stream, 7)


def test_it_holds_at_least_128_random_bits() -> None:
    made = {new_stream_id() for _ in range(2000)}
    assert len(made) == 2000
    length = len(made.pop()) - 3
    assert length * math.log2(64) >= 128
    # Every place takes on every letter: none of them is fixed or short of values.
    letters = [{stream[3 + place] for stream in made} for place in range(length)]
    assert all(len(seen) == 64 for seen in letters)


def test_an_event_id_causes_no_cors_preflight() -> None:
    for logged in (True, False):
        event_id = f"{new_stream_id(logged=logged)}.999999999999999"
        assert len(event_id) <= 128
        assert not set(event_id) & set(':()<>@[]{}"\\')


@pytest.mark.parametrize(("n", "parsed"), [("0", 0), ("1", 1), ("42", 42), ("999999999999999", 10**15 - 1)])
@pytest.mark.parametrize("end", [False, True])
def test_positions(n: str, parsed: int, end: bool) -> None:
    """A position after an event, and the one after the end that was told after it."""
    value = f"{STREAM}.{n}e" if end else f"{STREAM}.{n}"
    position = parse_event_id(value)
    assert position == EventId(STREAM, parsed, end)
    assert str(position) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1",
        "null",
        "undefined",
        STREAM,
        f"{STREAM}.",
        f".{STREAM}",
        f"{STREAM}.-1",
        f"{STREAM}.+1",
        f"{STREAM}.01",
        f"{STREAM}.00",
        f"{STREAM}.1.0",
        f"{STREAM}.1.2",
        f"{STREAM}.1e3",
        f"{STREAM}.1ee",
        f"{STREAM}.1E",
        f"{STREAM}.e",
        f"{STREAM}.01e",
        f"{STREAM}.1e ",
        f"{STREAM}.1 e",
        f"{STREAM}.0x1",
        f"{STREAM}. 1",
        f" {STREAM}.1",
        f"{STREAM}.1 ",
        f"{STREAM}.1\n",
        f"{STREAM}.1\r\n",
        f"{STREAM}\n.1",
        f"{STREAM}.1, {STREAM}.2",
        f"{STREAM}.1000000000000000",
        f"{STREAM}.{'9' * 5000}",
        f"{STREAM}.٣",
        f"{STREAM}.１",
        f"{STREAM}_v.1",
        f"{STREAM}x.1",
        f"{STREAM[:-1]}.1",
        f"{STREAM[:-1]}é.1",
        f"{STREAM[:-1]}}}.1",
        f"{STREAM[:-1]}*.1",
        f"ST_{STREAM[3:]}.1",
        f"st-{STREAM[3:]}.1",
        "st_.1",
        "resp_0123456789abcdef.1",
        "../../etc/passwd",
        "\0",
        "🦜" * 30,
    ],
)
def test_whatever_is_not_of_the_form_is_refused(value: str) -> None:
    assert parse_event_id(value) is None
    assert value == STREAM or not is_stream_id(value)


@given(st.text(max_size=64))
def test_no_text_raises(value: str) -> None:
    parsed = parse_event_id(value)
    assert parsed is None or str(parsed) == value


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=8))
def test_nothing_may_stand_beside_an_id(noise: str) -> None:
    if noise and not noise.removesuffix("e").isdigit() and noise != "e":
        assert parse_event_id(f"{STREAM}.1{noise}") is None
    if noise:
        assert parse_event_id(f"{noise}{STREAM}.1") is None


def test_an_unlogged_id_says_so_and_an_id_that_ends_alike_does_not() -> None:
    assert is_logged(STREAM)
    assert not is_logged(f"{STREAM}_u")
    assert is_logged(STREAM[:-2] + "_u")
