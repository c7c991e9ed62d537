"""The generator's check of one stream: every fault is counted as what it is, and nothing else is one."""

from __future__ import annotations

import json

import pytest

from relay.bench.stream import Again, Check, Tally
from relay.bench.wire import APIS, STAMP_TEXT, Api, Order, order_in

_LENGTH = 6
_STREAM = 17
_SENT = 1_000_000
apis = pytest.mark.parametrize("api", APIS.values(), ids=APIS)


def _event(api: Api, number: int, stream: int = _STREAM) -> bytes:
    return api.event(number, b"...." + STAMP_TEXT % (stream, number, _SENT))


def _body(api: Api, *numbers: int) -> bytes:
    events = (_event(api, number) for number in numbers)
    return b"".join([*api.opening, *events, *api.closing(_LENGTH)])


def _checked(api: Api, *parts: bytes, whole: bool = True) -> Tally:
    tally = Tally(recording=True)
    check = Check(tally, api, _STREAM, _LENGTH)
    for part in parts:
        check.feed(part, _SENT + 5_000)
    check.end(whole)
    return tally


def _checked_again(api: Api, *parts: bytes, whole: bool = True) -> Tally:
    """As the second reading of a stream whose first was without a fault."""
    tally = Tally()
    check = Again(Check(tally, api, _STREAM, _LENGTH), _body(api, *range(1, _LENGTH + 1)), _LENGTH, tally)
    for part in parts:
        check.feed(part, _SENT + 5_000)
    check.end(whole)
    return tally


def _errors(tally: Tally) -> dict[str, int]:
    return {name: count for name, count in tally.errors.items() if count}


@apis
def test_a_whole_stream_cut_at_every_byte_has_no_error(api: Api) -> None:
    body = _body(api, *range(1, _LENGTH + 1))
    for cut in range(len(body) + 1):
        tally = _checked(api, body[:cut], body[cut:])
        assert (tally.events, _errors(tally)) == (_LENGTH, {})
        assert tally.delays == [5_000] * _LENGTH


@apis
def test_a_whole_stream_byte_by_byte_has_no_error(api: Api) -> None:
    body = _body(api, *range(1, _LENGTH + 1))
    tally = _checked(api, *(body[i : i + 1] for i in range(len(body))))
    assert (tally.events, _errors(tally)) == (_LENGTH, {})


@pytest.mark.parametrize(
    ("numbers", "events", "errors"),
    [
        ((1, 2, 4, 5, 6), 5, {"missing": 1}),
        ((3, 4, 5, 6), 4, {"missing": 2}),
        ((1, 2, 3, 4), 4, {"missing": 2}),
        ((1, 2, 2, 3, 4, 5, 6), 6, {"doubled": 1}),
        ((1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6), 6, {"doubled": 6}),
        ((1, 3, 2, 4, 5, 6), 6, {"out_of_order": 1}),
        ((1, 4, 2, 3, 2, 5, 6), 6, {"out_of_order": 2, "doubled": 1}),
        ((1, 2, 3, 4, 5, 6, 7), 6, {"foreign": 1}),
        ((), 0, {"missing": 6}),
    ],
)
@apis
def test_faults(api: Api, numbers: tuple[int, ...], events: int, errors: dict[str, int]) -> None:
    body = _body(api, *numbers)
    at_once = _checked(api, body)
    assert (at_once.events, _errors(at_once)) == (events, errors)
    frame_by_frame = _checked(api, *(frame + b"\n\n" for frame in body.split(b"\n\n")))
    assert (frame_by_frame.events, _errors(frame_by_frame)) == (events, errors)
    for again in (_checked_again(api, body), _checked_again(api, *(frame + b"\n\n" for frame in body.split(b"\n\n")))):
        assert (again.events, _errors(again)) == (events, errors)


@apis
def test_a_stream_read_again_is_cut_or_changed_at_no_byte_unseen(api: Api) -> None:
    body = _body(api, *range(1, _LENGTH + 1))
    for at in range(len(body)):
        whole = _checked_again(api, body[:at], body[at:])
        assert (whole.events, _errors(whole)) == (_LENGTH, {})
        if at:  # nothing at all is a stream without an event
            assert _errors(_checked_again(api, body[:at], whole=False))["wrong_end"] == 1
        assert _checked_again(api, body[:at]).errors == _checked(api, body[:at]).errors
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert _checked_again(api, changed).errors == _checked(api, changed).errors


@apis
def test_an_event_of_another_stream_is_foreign(api: Api) -> None:
    body = _body(api, *range(1, _LENGTH + 1)).replace(_event(api, 3), _event(api, 3) + _event(api, 4, stream=99))
    tally = _checked(api, body)
    assert (tally.events, _errors(tally)) == (_LENGTH, {"foreign": 1})


@apis
def test_wrong_ends(api: Api) -> None:
    events = b"".join([*api.opening, *(_event(api, number) for number in range(1, _LENGTH + 1))])
    closing = b"".join(api.closing(_LENGTH))
    assert _errors(_checked(api, events, whole=True)) == {"wrong_end": 1}
    assert _errors(_checked(api, events + closing, whole=False)) == {"wrong_end": 1}
    error = b'event: error\ndata: {"type":"error","error": {"message":"gone"}}\n\n'
    assert _errors(_checked(api, events + error + closing)) == {"wrong_end": 1}


def test_json_made_anew_ids_and_comments_are_no_fault() -> None:
    api = APIS["chat"]
    frames = [b": keep-alive\n"]
    for number, frame in enumerate(_body(api, *range(1, _LENGTH + 1)).split(b"\n\n")[:-1]):
        data = frame.removeprefix(b"data: ")
        if data != b"[DONE]":
            data = json.dumps({"usage": None, "error": None, **json.loads(data)}, indent=1).replace("\n", "").encode()
        frames.append(b"id: st_x.%d\r\ndata:%b\r\n\r\n" % (number, data))
    tally = _checked(api, b"".join(frames))
    assert (tally.events, _errors(tally)) == (_LENGTH, {})


def test_text_repeated_at_the_end_of_a_responses_stream_is_not_doubled() -> None:
    api = APIS["responses"]
    text = b"".join(STAMP_TEXT % (_STREAM, number, _SENT) for number in range(1, _LENGTH + 1))
    body = _body(api, *range(1, _LENGTH + 1)).replace(b'"text":""', b'"text":"%b"' % text)
    start = body.index(b"event: response.output_text.delta")
    body = b"".join(api.opening) + body[start:]
    for cut in range(0, len(body), 3):
        assert _errors(_checked(api, body[:cut], body[cut:])) == {}


@apis
@pytest.mark.parametrize("rate", [0.0, 20.0, 0.5, -1.0])
def test_an_order_survives_the_body(api: Api, rate: float) -> None:
    order = Order(stream=123456, length=1000, rate=rate, payload=64)
    body = api.body("m", order)
    assert order_in(body) == order
    assert order_in(json.dumps(json.loads(body), indent=2).encode()) == order
