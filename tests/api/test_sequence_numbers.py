"""`starting_after`: which position a sequence number names, or that it names none."""

from __future__ import annotations

import json

import pytest

from relay.api.responses import Numbers
from relay.protocol.end_mark import End, encode_frames
from relay.protocol.errors import ApiError, PositionUnknown, StoreBehind
from relay.protocol.responses import Responses
from relay.protocol.sse import Parser

DONE = b"id: st_x.9\ndata: [DONE]\n\n"


def frame(number: int | None) -> bytes:
    event = {"type": "response.output_text.delta", "delta": "x"}
    body = event if number is None else {**event, "sequence_number": number}
    return b"id: st_x.1\nevent: response.output_text.delta\ndata: " + json.dumps(body).encode() + b"\n\n"


def position(sent: list[int | None], sequence: int, *, ended: bool = False, tail: tuple[bytes, ...] = ()) -> int:
    n, told = found(sent, sequence, End("completed") if ended else None, tail)
    assert not told
    return n


def found(sent: list[int | None], sequence: int, end: End | None, tail: tuple[bytes, ...] = ()) -> tuple[int, bool]:
    numbers = Numbers(sequence)
    for each in (*map(frame, sent), *tail):
        numbers.take(each)
    return numbers.position(end)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    ("sent", "sequence", "expected"),
    [
        ([0, 1, 2], 0, 1),
        ([0, 1, 2], 2, 3),
        ([1, 2, 3], 0, 0),
        ([0, 5, 9], 7, 2),
        ([None, 0, 1], 0, 2),
        ([0, 1, 2, None], 1, 2),
    ],
)
def test_numbers_that_rise(sent: list[int | None], sequence: int, expected: int, ended: bool) -> None:
    assert position(sent, sequence, ended=ended) == expected


@pytest.mark.parametrize(
    ("sent", "sequence"),
    [
        ([None, None], 0),
        ([0, 1, 2, 0, 1, 2], 1),
        ([0, 1, 2, 0], 0),
        ([0, 1, 1, 2], 2),
        ([3, 2, 1], 2),
        ([0, None, 1], 0),
        ([0, 1, None], 1),
        ([None, 1], 0),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_numbers_that_name_no_position(sent: list[int | None], sequence: int, ended: bool) -> None:
    """One may have been given twice, and behind one may stand an event that has none."""
    with pytest.raises(PositionUnknown):
        position(sent, sequence, ended=ended)


@pytest.mark.parametrize(("ended", "error"), [(False, StoreBehind), (True, PositionUnknown)])
def test_a_number_beyond_the_log(ended: bool, error: type[ApiError]) -> None:
    """The producer of a live stream writes it again; of an ended one it is lost."""
    for sequence in (3, 10):
        with pytest.raises(error):
            position([0, 1, 2], sequence, ended=ended)
    with pytest.raises(error):
        position([], 0, ended=ended)


def test_a_done_has_nothing_to_say() -> None:
    assert position([0, 1, 2], 2, ended=True, tail=(DONE,)) == 4
    assert position([0, 1, 2], 1, ended=True, tail=(DONE,)) == 2


def stopped(sent: list[int | None]) -> End:
    """The end of a stopped stream as its producer tells it."""
    watch = Responses().watch()
    for each in map(frame, sent):
        for event in Parser(1 << 20).feed(each):
            watch.see(event)
    return End("stopped", encode_frames(watch.stop_events("req_1"), "st_x", len(sent)))


@pytest.mark.parametrize(
    ("sent", "sequence", "expected"),
    [
        ([0, 1, 2], 2, (3, False)),
        ([0, 1, 2], 3, (3, False)),  # `response.created`, of a stream that had none: it is told again, with the end
        ([0, 1, 2], 4, (3, True)),
        ([], 1, (0, True)),
    ],
)
def test_who_was_told_the_end_of_a_stopped_stream(
    sent: list[int | None], sequence: int, expected: tuple[int, bool]
) -> None:
    """The end takes no number in the log, but its events have numbers of their own."""
    assert found(sent, sequence, stopped(sent)) == expected
    with pytest.raises(PositionUnknown):
        found(sent, 5, stopped(sent))
    with pytest.raises(PositionUnknown):
        found(sent, 4, End("producer_lost"))  # nobody can tell whether it is this end's or a lost event's
