"""One stream's state: what it hands out, when it comes back, how long it waits, and when it gives up."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import pytest

from relay.client.policy import Policy, retry_after
from relay.client.resumption import Ask, Resumption, Then, Unresumable, stream_of

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
def state(clock: Clock) -> Resumption:
    return Resumption("chat", STREAM, Policy(clock=clock, random=lambda: 1.0))


def waits(state: Resumption, clock: Clock, limit: int = 1000) -> list[float]:
    """Cut, and then nothing but connection errors: every wait until it gives up."""
    found: list[float] = []
    try:
        then: Ask | Then = state.cut("ReadError")
        while len(found) < limit:
            assert isinstance(then, Ask)
            found.append(then.wait)
            clock.now += then.wait
            then = state.unanswered("ConnectError")
    except Unresumable:
        return found
    raise AssertionError("it goes on for ever")


def test_events_go_out_whole_and_the_position_follows(state: Resumption) -> None:
    assert state.feed(frame(1) + frame(2)[:-1]) == frame(1)
    assert state.last_event_id == f"{STREAM}.1"
    assert state.cut("ReadError") == Ask(f"{STREAM}.1", 0.5)
    assert state.feed(frame(2)) == frame(2)  # nothing of the first connection's half event is left
    assert state.last_event_id == f"{STREAM}.2"


def test_before_the_first_event_the_whole_stream_is_asked_for(state: Resumption) -> None:
    assert state.feed(b": hb\n") == b": hb\n"
    then = state.cut("ReadError")
    assert isinstance(then, Ask)
    assert then.last_event_id == f"{STREAM}.0"


def test_a_request_that_was_a_resume_itself_begins_where_it_asked() -> None:
    policy = Policy()
    assert Resumption("chat", STREAM, policy, asked_for=f"{STREAM}.7").last == 7
    assert Resumption("chat", STREAM, policy, asked_for=f"{OTHER}.7").last == 0
    assert Resumption("chat", STREAM, policy, asked_for="rubbish").last == 0


def test_what_was_handed_out_already_is_dropped(state: Resumption) -> None:
    state.feed(frame(1) + frame(2))
    state.cut("ReadError")
    assert state.feed(frame(1) + frame(2) + frame(3)) == frame(3)


@pytest.mark.parametrize(("wrong", "says"), [(frame(3), "Event 3 came"), (frame(2, stream=OTHER), OTHER)])
def test_a_hole_or_another_stream_is_an_error(state: Resumption, wrong: bytes, says: str) -> None:
    state.feed(frame(1))
    with pytest.raises(Unresumable, match=says) as raised:
        state.feed(wrong)
    assert raised.value.last_event_id == f"{STREAM}.1"


@pytest.mark.parametrize("why", [None, "ReadError"])
def test_after_the_last_event_every_end_is_the_end(state: Resumption, why: str | None) -> None:
    state.feed(frame(1, DONE))
    assert state.cut(why) is Then.END


def test_a_clean_end_without_the_last_event_is_asked_about_at_once(state: Resumption) -> None:
    state.feed(frame(1, retry=2000))
    assert state.cut(None) == Ask(f"{STREAM}.1", 0.0)
    assert state.answered(204, HEAD, b"") is Then.END


def test_clean_ends_that_bring_nothing_are_not_asked_about_for_ever(state: Resumption, clock: Clock) -> None:
    state.feed(frame(1))
    for _ in range(10):
        assert isinstance(state.cut(None), Ask)
        assert state.answered(200, HEAD, b"") is Then.READ
    with pytest.raises(Unresumable, match="Gave up after 10 attempts"):
        state.cut(None)


def test_a_stream_that_goes_on_without_ids_cannot_be_resumed(state: Resumption) -> None:
    plain = b"data: {}\n\n"
    assert state.feed(frame(1) + plain) == frame(1) + plain
    assert state.cut("ReadError") is Then.AS_IT_IS
    assert state.cut(None) is Then.AS_IT_IS


def test_a_ping_without_an_id_is_only_a_sign_of_life() -> None:
    state = Resumption("messages", STREAM, Policy())
    state.feed(frame(1) + b'event: ping\ndata: {"type":"ping"}\n\n')
    assert isinstance(state.cut("ReadError"), Ask)


def test_waits_double_up_to_the_longest_and_end_after_max_attempts(clock: Clock) -> None:
    policy = Policy(max_attempts=7, longest_delay=10, clock=clock, random=lambda: 1.0)
    assert waits(Resumption("chat", STREAM, policy), clock) == [0.5, 1, 2, 4, 8, 10, 10]


def test_jitter_is_full(clock: Clock) -> None:
    policy = Policy(max_attempts=3, clock=clock, random=lambda: 0.0)
    assert waits(Resumption("chat", STREAM, policy), clock) == [0, 0, 0]


def test_no_wait_goes_beyond_max_elapsed(clock: Clock) -> None:
    policy = Policy(max_attempts=1000, max_elapsed=20, clock=clock, random=lambda: 1.0)
    assert waits(Resumption("chat", STREAM, policy), clock) == [0.5, 1, 2, 4, 8]


def test_the_stream_s_retry_is_the_least_wait(state: Resumption, clock: Clock) -> None:
    state.feed(frame(1, retry=3000))
    assert waits(state, clock)[:5] == [3, 3, 3, 4, 8]


def test_retry_after_is_the_least_wait_for_one_attempt(state: Resumption) -> None:
    state.cut("ReadError")
    assert state.answered(503, {"retry-after": "7"}, refusal("draining")) == Ask(f"{STREAM}.0", 7)
    assert state.answered(503, {}, b"") == Ask(f"{STREAM}.0", 2)


@pytest.mark.parametrize("sign", [frame(1), b": hb\n"])
def test_progress_begins_everything_anew(state: Resumption, clock: Clock, sign: bytes) -> None:
    state.cut("ReadError")
    for _ in range(5):
        state.unanswered("ConnectError")
    clock.now += 100
    state.feed(sign)
    assert state.cut("ReadError") == Ask(state.last_event_id, 0.5)
    assert len(waits(state, clock)) == 9


def test_an_answer_ends_the_outage_but_not_the_count(state: Resumption, clock: Clock) -> None:
    """A relay whose stream is silent for longer than `silence` is there, however long that takes."""
    for n in range(10):
        assert isinstance(state.cut("ReadTimeout"), Ask), n
        state.answered(200, HEAD, b"")
        clock.now += 60
    with pytest.raises(Unresumable, match="Gave up after 10 attempts"):
        state.cut("ReadTimeout")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 524])
def test_what_may_pass_is_tried_again(state: Resumption, status: int) -> None:
    state.cut("ReadError")
    assert isinstance(state.answered(status, {}, b"<html>"), Ask)


@pytest.mark.parametrize(
    ("status", "code", "what_to_do"),
    [
        (400, "resume_not_supported", "without a log"),
        (401, None, "credential"),
        (403, None, "credential"),
        (404, "stream_not_found", "share one store"),
        (410, "stream_expired", "no longer keeps"),
        (410, "position_unknown", "has lost"),
        (302, None, "stands between"),
    ],
)
def test_what_cannot_pass_is_an_error_that_says_what_to_do(
    state: Resumption, status: int, code: str | None, what_to_do: str
) -> None:
    state.feed(frame(1))
    state.cut("ReadError")
    with pytest.raises(Unresumable, match=what_to_do) as raised:
        state.answered(status, {}, refusal(code) if code else b"sk-secret")
    error = raised.value
    assert (error.status, error.code, error.last_event_id) == (status, code, f"{STREAM}.1")
    assert (code or str(status)) in str(error)
    assert "sk-secret" not in str(error)


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("stream", [None, OTHER])
def test_an_answer_that_is_not_this_stream_is_an_error(state: Resumption, status: int, stream: str | None) -> None:
    head = {**HEAD, "relay-stream-id": stream} if stream else {"content-type": "text/event-stream"}
    state.cut("ReadError")
    with pytest.raises(Unresumable, match="not this stream"):
        state.answered(status, head, b"")


def test_which_answers_begin_a_resumable_stream() -> None:
    assert stream_of(200, HEAD) == STREAM
    assert stream_of(201, HEAD) is None
    for name, value in {
        "relay-stream-id": "st_short",
        "relay-resumable": "false",
        "content-type": "application/json",
        "content-encoding": "gzip",
    }.items():
        assert stream_of(200, {**HEAD, name: value}) is None
        if name != "content-encoding":
            assert stream_of(200, {k: v for k, v in HEAD.items() if k != name}) is None


def test_retry_after_in_both_forms() -> None:
    assert retry_after({"retry-after": "3"}) == 3
    date = "Fri, 01 Jan 2100 00:00:0"
    assert retry_after({"date": f"{date}0 GMT", "retry-after": f"{date}4 GMT"}) == 4
    assert retry_after({"date": f"{date}4 GMT", "retry-after": f"{date}0 GMT"}) == 0
    for nothing in ("", "soon", "-1", "1.5", f"{date}4 GMT"):
        assert retry_after({"retry-after": nothing}) == 0


def test_each_attempt_is_one_debug_line(state: Resumption, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "relay.client"):
        state.feed(frame(1))
        state.cut("ReadError")
        state.answered(503, {}, refusal("draining"))
    assert [record.name for record in caplog.records] == ["relay.client"] * 2
    assert f"{STREAM} is to be resumed after event 1 in 0.50 s (attempt 1): ReadError" in caplog.messages[0]
    assert caplog.messages[1].endswith("in 1.00 s (attempt 2): 503 draining")
