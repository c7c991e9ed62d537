"""One stream's state: what it hands out, when it comes back, how long it waits, and when it gives up."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from relay.client.decoding import Decoder, DecodingError
from relay.client.policy import STEADY_CONNECTION, Counters, Moment, Policy, heartbeat_interval, retry_after
from relay.client.resumable_stream import Action, Reason, Reconnect, ResumableStream, Unresumable, resumable_stream_id

STREAM = "st_" + "s" * 22
OTHER = "st_" + "o" * 22
HEAD = {"relay-stream-id": STREAM, "relay-resumable": "true", "content-type": "text/event-stream; charset=utf-8"}
DONE = b"[DONE]"


def frame(n: int, data: bytes = b"{}", *, stream: str = STREAM, retry: int | None = None) -> bytes:
    hint = b"" if retry is None else b"retry: %d\n" % retry
    return b"id: %b.%d\n%bdata: %b\n\n" % (stream.encode(), n, hint, data)


def refusal(code: str) -> bytes:
    return json.dumps({"error": {"message": "sk-secret", "code": code}}).encode()


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> ResumableStream:
    return ResumableStream("chat", STREAM, Policy(clock=clock, random=lambda: 1.0))


def waits(state: ResumableStream, clock: Clock, limit: int = 1000) -> list[float]:
    """Cut, and then nothing but connection errors: every wait until it gives up."""
    found: list[float] = []
    try:
        action: Reconnect | Action = state.on_disconnect("ReadError")
        while len(found) < limit:
            assert isinstance(action, Reconnect)
            found.append(action.wait)
            clock.now += action.wait
            action = state.on_request_failed("ConnectError")
    except Unresumable:
        return found
    raise AssertionError("it goes on for ever")


def test_events_go_out_whole_and_the_position_follows(state: ResumableStream) -> None:
    assert state.feed(frame(1) + frame(2)[:-1]) == frame(1)
    assert state.last_event_id == f"{STREAM}.1"
    assert state.on_disconnect("ReadError") == Reconnect(f"{STREAM}.1", 0.5)
    assert state.feed(frame(2)) == frame(2)  # nothing of the first connection's half event is left
    assert state.last_event_id == f"{STREAM}.2"


def test_before_the_first_event_the_whole_stream_is_asked_for(state: ResumableStream) -> None:
    assert state.feed(b": hb\n") == b": hb\n"
    action = state.on_disconnect("ReadError")
    assert isinstance(action, Reconnect)
    assert action.last_event_id == f"{STREAM}.0"


def test_a_request_that_was_a_resume_itself_begins_where_it_asked() -> None:
    policy = Policy()
    assert ResumableStream("chat", STREAM, policy, requested_event_id=f"{STREAM}.7").last == 7
    assert ResumableStream("chat", STREAM, policy, requested_event_id=f"{OTHER}.7").last == 0
    assert ResumableStream("chat", STREAM, policy, requested_event_id="rubbish").last == 0


def test_what_was_handed_out_already_is_dropped(state: ResumableStream) -> None:
    state.feed(frame(1) + frame(2))
    state.on_disconnect("ReadError")
    assert state.feed(frame(1) + frame(2) + frame(3)) == frame(3)


@pytest.mark.parametrize(("wrong", "says"), [(frame(3), "Event 3 came"), (frame(2, stream=OTHER), OTHER)])
def test_a_hole_or_another_stream_is_an_error(state: ResumableStream, wrong: bytes, says: str) -> None:
    state.feed(frame(1))
    with pytest.raises(Unresumable, match=says) as raised:
        state.feed(wrong)
    assert raised.value.last_event_id == f"{STREAM}.1"


@pytest.mark.parametrize("why", [None, "ReadError"])
def test_after_the_last_event_every_end_is_the_end(state: ResumableStream, why: str | None) -> None:
    state.feed(frame(1, DONE))
    assert state.on_disconnect(why) is Action.END


def test_a_clean_end_without_the_last_event_is_asked_about_at_once(state: ResumableStream) -> None:
    state.feed(frame(1, retry=2000))
    # A proxy that ends streams cleanly must not make all its clients come back at the same moment.
    assert state.on_disconnect(None) == Reconnect(f"{STREAM}.1", 2.0)
    assert state.on_response(204, HEAD, b"") is Action.END


def test_a_clean_end_is_asked_about_at_once_only_once_for_each_new_event(state: ResumableStream) -> None:
    state.feed(frame(1))
    assert state.on_disconnect(None) == Reconnect(f"{STREAM}.1", 0.0)
    state.on_response(200, HEAD, b"")
    assert state.on_disconnect(None) == Reconnect(f"{STREAM}.1", 1.0)
    state.on_response(200, HEAD, b"")
    state.feed(frame(2))
    assert state.on_disconnect(None) == Reconnect(f"{STREAM}.2", 0.0)


@pytest.mark.parametrize("sign", [b"", b": hb\n"])
def test_ends_that_bring_no_event_are_not_asked_about_for_ever(state: ResumableStream, sign: bytes) -> None:
    state.feed(frame(1))
    for _ in range(40):
        assert isinstance(state.on_disconnect(None), Reconnect)
        assert state.on_response(200, HEAD, b"") is Action.READ_BODY
        state.feed(sign)
    with pytest.raises(Unresumable, match=r"Gave up after 40 attempts in 0\.0 s"):
        state.on_disconnect(None)


def test_answers_that_bring_no_event_do_not_begin_the_time_anew(clock: Clock) -> None:
    state = ResumableStream("chat", STREAM, Policy(max_elapsed=10, clock=clock, random=lambda: 1.0))
    state.feed(frame(1))
    for wait in (0.5, 1, 2, 4):
        assert state.on_disconnect("ReadError") == Reconnect(f"{STREAM}.1", wait)
        clock.now += wait
        state.on_response(200, HEAD, b"")
        state.feed(b": hb\n")
    with pytest.raises(Unresumable, match=r"max_elapsed \(10 s\)") as raised:
        state.on_disconnect("ReadError")
    assert raised.value.reason is Reason.TIMED_OUT


def test_a_stream_that_goes_on_without_ids_cannot_be_resumed(state: ResumableStream) -> None:
    plain = b"data: {}\n\n" * 20
    assert state.feed(frame(1) + plain) == frame(1) + plain
    for why in ("ReadError", None):
        with pytest.raises(Unresumable, match="went on without ids") as raised:
            state.on_disconnect(why)
        assert raised.value.reason is Reason.WITHOUT_IDS


def test_a_stream_whose_ids_return_can_be_resumed_again(state: ResumableStream) -> None:
    state.feed(frame(1) + b"data: {}\n\n" * 20 + frame(2))
    action = state.on_disconnect("ReadError")
    assert isinstance(action, Reconnect)
    assert action.last_event_id == f"{STREAM}.2"
    assert state.feed(frame(3)) == frame(3)


ERROR = b'data: {"error":{"code":"max_duration"}}\n\n'
END = f"id: {STREAM}.1e\ndata: [DONE]\n\n".encode()


def test_an_end_that_the_relay_tells_takes_no_number(state: ResumableStream) -> None:
    assert state.feed(frame(1) + ERROR + END) == frame(1) + ERROR + END
    assert state.last_event_id == f"{STREAM}.1e"
    assert state.on_disconnect("ReadError") is Action.END


def test_an_end_that_was_cut_is_told_again_and_handed_out_once(state: ResumableStream) -> None:
    assert state.feed(frame(1) + ERROR + END[:-1]) == frame(1) + ERROR
    action = state.on_disconnect("ReadError")
    assert isinstance(action, Reconnect)
    assert action.last_event_id == f"{STREAM}.1"
    assert state.feed(ERROR + END) == END
    assert state.on_disconnect(None) is Action.END


@pytest.mark.parametrize("then", [b"data: 2\n\n", frame(2), END, None])
def test_frames_without_an_id_that_are_told_otherwise_are_an_error(state: ResumableStream, then: bytes | None) -> None:
    state.feed(frame(1) + b"data: {}\n\n")
    state.on_disconnect("ReadError")
    with pytest.raises(Unresumable, match="told otherwise"):
        state.on_response(204, HEAD, b"") if then is None else state.feed(then)


@pytest.mark.parametrize("last", [0, 2])
def test_an_end_after_another_event_is_an_error(state: ResumableStream, last: int) -> None:
    state.feed(b"".join(frame(n + 1) for n in range(last)))
    with pytest.raises(Unresumable, match="The end after event 1 came"):
        state.feed(END)


def test_a_key_in_flight_and_a_log_that_is_behind_are_waited_for(state: ResumableStream) -> None:
    state.on_disconnect("ReadError")
    for status, code in ((409, "idempotency_key_in_flight"), (503, "store_behind")):
        assert state.on_response(status, {"retry-after": "7"}, refusal(code)) == Reconnect(f"{STREAM}.0", 7)


def test_a_ping_without_an_id_is_only_a_sign_of_life() -> None:
    state = ResumableStream("messages", STREAM, Policy())
    state.feed(frame(1) + b'event: ping\ndata: {"type":"ping"}\n\n')
    assert isinstance(state.on_disconnect("ReadError"), Reconnect)


def test_waits_double_up_to_the_longest_and_end_after_max_attempts(clock: Clock) -> None:
    policy = Policy(max_attempts=7, longest_delay=10, clock=clock, random=lambda: 1.0)
    assert waits(ResumableStream("chat", STREAM, policy), clock) == [0.5, 1, 2, 4, 8, 10, 10]


def test_jitter_is_full(clock: Clock) -> None:
    policy = Policy(max_attempts=3, clock=clock, random=lambda: 0.0)
    assert waits(ResumableStream("chat", STREAM, policy), clock) == [0, 0, 0]


def test_a_stream_may_have_a_deadline_as_a_whole(clock: Clock) -> None:
    state = ResumableStream("chat", STREAM, Policy(deadline=100, clock=clock, random=lambda: 1.0))
    clock.now = 99
    state.feed(frame(1))
    assert isinstance(state.on_disconnect("ReadError"), Reconnect)
    clock.now = 100
    state.feed(b": hb\n")
    with pytest.raises(Unresumable, match=r"deadline of the whole stream \(100 s\)") as raised:
        state.raise_pending()
    assert raised.value.reason is Reason.TIMED_OUT


def test_a_retry_longer_than_the_bound_costs_no_stream_without_a_try(state: ResumableStream, clock: Clock) -> None:
    state.feed(frame(1, retry=600_000))
    assert waits(state, clock) == [120]


def test_a_failure_tells_the_true_tries_and_time(state: ResumableStream, clock: Clock) -> None:
    state.feed(frame(1))
    state.on_disconnect("ReadError")
    clock.now += 0.5
    with pytest.raises(Unresumable, match=r"Gave up after 1 attempts in 0.5 s, .* obstacle: 503 draining"):
        state.on_response(503, {"retry-after": "600"}, refusal("draining"))


def test_no_wait_goes_beyond_max_elapsed(clock: Clock) -> None:
    policy = Policy(max_attempts=1000, max_elapsed=20, clock=clock, random=lambda: 1.0)
    assert waits(ResumableStream("chat", STREAM, policy), clock) == [0.5, 1, 2, 4, 8]


def test_the_stream_s_retry_is_the_least_wait(state: ResumableStream, clock: Clock) -> None:
    state.feed(frame(1, retry=3000))
    assert waits(state, clock)[:5] == [3, 3, 3, 4, 8]


def test_retry_after_is_the_least_wait_for_one_attempt(state: ResumableStream) -> None:
    state.on_disconnect("ReadError")
    assert state.on_response(503, {"retry-after": "7"}, refusal("draining")) == Reconnect(f"{STREAM}.0", 7)
    assert state.on_response(503, {}, b"") == Reconnect(f"{STREAM}.0", 2)


@pytest.mark.parametrize(("sign", "lived"), [(frame(1), 0), (b": hb\n", STEADY_CONNECTION)])
def test_progress_begins_everything_anew(state: ResumableStream, clock: Clock, sign: bytes, lived: float) -> None:
    state.on_disconnect("ReadError")
    for _ in range(5):
        state.on_request_failed("ConnectError")
    clock.now += 100
    state.on_response(200, HEAD, b"")
    clock.now += lived
    state.feed(sign)
    assert state.on_disconnect("ReadError") == Reconnect(state.last_event_id, 0.5)
    assert len(waits(state, clock)) == 11


def test_an_answer_ends_the_outage_but_not_the_count(state: ResumableStream, clock: Clock) -> None:
    """A relay whose stream is silent for longer than `silence` is there, however long that takes."""
    for n in range(40):
        assert isinstance(state.on_disconnect("ReadTimeout"), Reconnect), n
        state.on_response(200, HEAD, b"")
        clock.now += 60
    with pytest.raises(Unresumable, match="Gave up after 40 attempts"):
        state.on_disconnect("ReadTimeout")


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504, 524])
def test_what_may_pass_is_tried_again(state: ResumableStream, status: int) -> None:
    """Without a code it is not the relay's word: ingresses answer such while replicas roll."""
    state.on_disconnect("ReadError")
    assert isinstance(state.on_response(status, {}, b"<html>"), Reconnect)


@pytest.mark.parametrize(
    ("status", "code", "what_to_do"),
    [
        (400, "resume_not_supported", "without a log"),
        (401, "invalid_api_key", "made anew for each request"),
        (403, "invalid_ticket", "stands between"),
        (404, "stream_not_found", "share one store"),
        (410, "stream_expired", "no longer keeps"),
        (410, "position_unknown", "has lost"),
        (410, "response_id_ambiguous", "Relay-Stream-Id of its request"),
    ],
)
def test_what_cannot_pass_is_an_error_that_says_what_to_do(
    state: ResumableStream, status: int, code: str, what_to_do: str
) -> None:
    state.feed(frame(1))
    state.on_disconnect("ReadError")
    with pytest.raises(Unresumable, match=what_to_do) as raised:
        state.on_response(status, {}, refusal(code))
    error = raised.value
    assert (error.status, error.code, error.last_event_id) == (status, code, f"{STREAM}.1")
    assert code in str(error)
    assert "sk-secret" not in str(error)


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("stream", [None, OTHER])
def test_an_answer_that_is_not_this_stream_is_an_error(state: ResumableStream, status: int, stream: str | None) -> None:
    head = {**HEAD, "relay-stream-id": stream} if stream else {"content-type": "text/event-stream"}
    state.on_disconnect("ReadError")
    with pytest.raises(Unresumable, match="not this stream"):
        state.on_response(status, head, b"")


def test_which_answers_begin_a_resumable_stream() -> None:
    assert resumable_stream_id(200, HEAD) == STREAM
    assert resumable_stream_id(201, HEAD) is None
    for name, value in {
        "relay-stream-id": "st_short",
        "relay-resumable": "false",
        "content-type": "application/json",
        "content-encoding": "br",
    }.items():
        assert resumable_stream_id(200, {**HEAD, name: value}) is None
        if name != "content-encoding":
            assert resumable_stream_id(200, {k: v for k, v in HEAD.items() if k != name}) is None


def test_retry_after_in_both_forms() -> None:
    assert retry_after({"retry-after": "3"}) == 3
    date = "Fri, 01 Jan 2100 00:00:0"
    assert retry_after({"date": f"{date}0 GMT", "retry-after": f"{date}4 GMT"}) == 4
    assert retry_after({"date": f"{date}4 GMT", "retry-after": f"{date}0 GMT"}) == 0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < retry_after({"retry-after": soon}) <= 60  # without a Date it counts from now
    for nothing in ("", "soon", "-1", "1.5", "Fri, 01 Jan 1999 00:00:00 GMT"):
        assert retry_after({"retry-after": nothing}) == 0


def test_each_attempt_is_one_debug_line(state: ResumableStream, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "relay.client"):
        state.feed(frame(1))
        state.on_disconnect("ReadError")
        state.on_response(503, {}, refusal("draining"))
    assert [record.name for record in caplog.records] == ["relay.client"] * 2
    assert f"{STREAM} is to be resumed after event 1 in 0.50 s (attempt 1): ReadError" in caplog.messages[0]
    assert caplog.messages[1].endswith("in 1.00 s (attempt 2): 503 draining")


def test_a_refused_credential_is_not_final_where_it_is_made_anew(clock: Clock) -> None:
    state = ResumableStream("chat", STREAM, Policy(clock=clock), fresh_credentials=True)
    state.on_disconnect("ReadError")
    for status in (401, 403):
        assert isinstance(state.on_response(status, {}, refusal("invalid_api_key")), Reconnect)


def test_a_page_in_the_place_of_the_stream_is_tried_again(state: ResumableStream) -> None:
    state.on_disconnect("ReadError")
    assert isinstance(state.on_response(200, {"content-type": "text/html; charset=utf-8"}, b""), Reconnect)


def test_what_was_good_is_handed_out_before_the_error(state: ResumableStream) -> None:
    assert state.feed(frame(1) + frame(3)) == frame(1)
    with pytest.raises(Unresumable, match="Event 3 came") as raised:
        state.raise_pending()
    assert raised.value.last_event_id == f"{STREAM}.1"


@pytest.mark.parametrize(("encoding", "window"), [("gzip", 31), ("deflate", 15)])
def test_a_body_that_was_compressed_on_the_way_is_read(clock: Clock, encoding: str, window: int) -> None:
    pack = zlib.compressobj(wbits=window)
    parts = [pack.compress(frame(n)) + pack.flush(zlib.Z_SYNC_FLUSH) for n in (1, 2)]
    state = ResumableStream("chat", STREAM, Policy(clock=clock), encoding=encoding)
    assert [state.feed(part) for part in parts] == [frame(1), frame(2)]
    with pytest.raises(DecodingError):
        state.feed(b"\xff" * 9)
    state.on_disconnect("DecodingError")
    assert state.on_response(200, HEAD, b"") is Action.READ_BODY
    assert state.feed(frame(3)) == frame(3)


def test_what_inflates_without_end_is_bounded(clock: Clock) -> None:
    bomb = zlib.compress(b": " + b"x" * 50_000_000, wbits=31)
    assert max(map(len, Decoder("gzip").feed(bomb))) <= 65_536
    state = ResumableStream("chat", STREAM, Policy(clock=clock, max_event_bytes=100_000), encoding="gzip")
    with pytest.raises(Unresumable, match="larger than 100000 bytes") as raised:
        state.feed(bomb)
    assert raised.value.reason is Reason.EVENT_TOO_LARGE


def test_a_stream_that_begins_at_an_unknown_number_goes_on_from_it(clock: Clock) -> None:
    state = ResumableStream("responses", STREAM, Policy(clock=clock), first_number_known=False)
    action = state.on_disconnect("ReadError")
    assert isinstance(action, Reconnect)
    assert action.last_event_id is None
    assert state.feed(frame(7) + frame(8)) == frame(7) + frame(8)
    assert state.last_event_id == f"{STREAM}.8"


def test_callbacks_and_counters_tell_what_happened(clock: Clock) -> None:
    told: list[tuple[str, Moment]] = []

    def on(name: str) -> Callable[[Moment], None]:
        def notify(moment: Moment) -> None:
            told.append((name, moment))
            raise ValueError("it is the user's own")

        return notify

    counters = Counters()
    policy = Policy(
        max_attempts=1,
        clock=clock,
        random=lambda: 1.0,
        on_cut=on("cut"),
        on_resume=on("resume"),
        on_gave_up=on("gave up"),
    )
    state = ResumableStream("chat", STREAM, policy, counters=counters)
    state.feed(frame(1))
    state.on_disconnect("ReadError")
    clock.now += 0.5
    state.on_response(200, HEAD, b"")
    with pytest.raises(Unresumable):
        state.on_disconnect("ReadError")
    at = f"{STREAM}.1"
    assert told == [
        ("cut", Moment(STREAM, at, 0, 0.0, "ReadError")),
        ("resume", Moment(STREAM, at, 1, 0.5, "")),
        ("cut", Moment(STREAM, at, 1, 0.5, "ReadError")),
        ("gave up", Moment(STREAM, at, 1, 0.5, "ReadError")),
    ]
    found = (counters.streams, counters.cuts, counters.attempts, counters.resumes, counters.gave_up)
    assert found == (1, 2, 1, 1, 1)


def test_the_heartbeat_that_a_relay_announces() -> None:
    assert heartbeat_interval({"relay-heartbeat": "15"}) == 15
    assert heartbeat_interval({"relay-heartbeat": "0.2"}) == 0.2
    for nothing in ("", "soon", "0", "-1", "nan", "inf", "1e9", "9" * 30):
        assert heartbeat_interval({"relay-heartbeat": nothing}) is None
