"""What the transports do with requests and answers, in both libraries, synchronous and asynchronous alike."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from relay.client.httpx import ResumingTransport
from relay.client.policy import Policy
from tests.client.played import (
    BODY,
    DONE,
    HEAD,
    KINDS,
    STREAM,
    URL,
    Answer,
    Kind,
    Script,
    frame,
    known,
    refused,
    whole,
    whole_from,
)

# -- coming back ------------------------------------------------------------------------------------------------------


def test_a_cut_in_mid_event_is_not_seen(kind: Kind) -> None:
    first = Answer(parts=[frame(1) + frame(2)[:9], frame(2)[9:] + frame(3)[:20], "ReadError"])
    seen = kind.post([first, Answer(parts=[frame(3), frame(4, DONE)])])
    assert seen.error is None
    assert seen.parts == [frame(1), frame(2), frame(3), frame(4, DONE)]
    assert kind.headers("last-event-id") == [None, f"{STREAM}.2"]
    assert first.closed


def test_the_resume_is_the_same_request(kind: Kind) -> None:
    script: Script = [Answer(parts=["RemoteProtocolError"]), whole()]
    kind.post(script, headers={"authorization": "Bearer sk-secret", "x-mine": "1"}, extensions={"mine": 1})
    first, second = kind.requests
    assert b"".join(second.stream) == b"".join(first.stream) != b""
    assert (second.method, second.url, second.extensions) == (first.method, first.url, first.extensions)
    assert second.extensions["mine"] == 1
    own = (b"last-event-id", b"accept-encoding", b"idempotency-key")
    assert second.headers["accept-encoding"] == "identity"
    kept = [(name, value) for name, value in second.headers.raw if name.lower() not in own]
    assert kept == [(name, value) for name, value in first.headers.raw if name.lower() not in own]


@pytest.mark.parametrize("cut", ["ReadError", "ReadTimeout", "RemoteProtocolError", None])
def test_any_cut_before_the_first_event_asks_for_the_start(kind: Kind, cut: str | None) -> None:
    seen = kind.post([Answer(parts=[cut] if cut else []), Answer(parts=[frame(1), frame(2, DONE)])])
    assert seen.body == frame(1) + frame(2, DONE)
    assert kind.headers("last-event-id") == [None, f"{STREAM}.0"]


def test_204_is_the_end(kind: Kind) -> None:
    gone = Answer(204, {"relay-stream-id": STREAM})
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), gone])
    assert (seen.error, seen.body) == (None, frame(1))
    assert gone.closed


def test_a_clean_end_without_the_last_event_is_asked_about(kind: Kind) -> None:
    seen = kind.post([Answer(parts=[frame(1)]), Answer(parts=[frame(2)]), Answer(204, dict(HEAD))])
    assert (seen.error, seen.body) == (None, frame(1) + frame(2))
    assert kind.waits == [0, 0]


def test_after_the_last_event_nothing_is_asked(kind: Kind) -> None:
    seen = kind.post([Answer(parts=[frame(1), frame(2, DONE), "ReadError"])])
    assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))


def test_refusals_that_pass_are_waited_out(kind: Kind) -> None:
    away = refused(503, "store_unavailable", retry_after="9")
    script: Script = [Answer(parts=[frame(1), "ReadError"]), "ConnectError", away, "ConnectTimeout", whole_from(2)]
    seen = kind.post(script)
    assert seen.body == frame(1) + frame(2, DONE)
    assert kind.waits == [0.5, 1, 9, 4]
    assert away.closed


def test_giving_up_is_an_error_of_the_library(kind: Kind) -> None:
    policy = Policy(max_attempts=3, random=lambda: 1.0)
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), *["ConnectError"] * 3], kind.transport(policy))
    assert isinstance(seen.error, kind.http.RemoteProtocolError)
    assert isinstance(seen.error, kind.client.ResumeFailed)
    assert isinstance(seen.error.__cause__, kind.http.ConnectError)
    assert seen.error.last_event_id == f"{STREAM}.1"
    assert "Gave up after 3 attempts" in str(seen.error)
    assert seen.parts == [frame(1)]
    assert kind.waits == [0.5, 1, 2]


@pytest.mark.parametrize(("status", "code"), [(404, "stream_not_found"), (410, "stream_expired"), (401, "bad_key")])
def test_a_resume_that_cannot_work_is_an_error(kind: Kind, status: int, code: str) -> None:
    refusal = refused(status, code)
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), refusal], headers={"authorization": "Bearer sk-secret"})
    assert isinstance(seen.error, kind.client.ResumeFailed)
    assert (seen.error.status, seen.error.code) == (status, code)
    assert code in str(seen.error)
    assert "sk-secret" not in repr(seen.error)
    assert refusal.closed


def test_another_stream_in_answer_is_an_error(kind: Kind) -> None:
    other = Answer(headers={**HEAD, "relay-stream-id": "st_" + "x" * 22}, parts=[frame(1)])
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), other])
    assert "not this stream" in str(seen.error)
    assert seen.parts == [frame(1)]
    assert other.closed


def test_credentials_and_text_are_in_no_log_line(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = frame(1, '{"text":"sk-secret"}')
    kind.post(
        [Answer(parts=[secret, "ReadError"]), refused(503, "x"), whole_from(2)], headers={"x-api-key": "sk-secret"}
    )
    assert [record.name for record in caplog.records if record.name.startswith("relay")] == ["relay.client"] * 2
    assert "sk-secret" not in caplog.text


# -- time-outs --------------------------------------------------------------------------------------------------------


def test_the_request_s_time_outs_hold_for_every_attempt(kind: Kind) -> None:
    timeout = kind.http.Timeout(connect=1, read=2, write=3, pool=4)
    kind.post([Answer(parts=["ReadTimeout"]), whole()], timeout=timeout)
    assert kind.timeouts == [{"connect": 1, "read": 2, "write": 3, "pool": 4}] * 2


@pytest.mark.parametrize(("read", "lives"), [(1, 31), (40, 40), (600, 60), (None, 60)])
def test_a_living_stream_is_never_left_before_its_heartbeat(kind: Kind, read: float | None, lives: float) -> None:
    head = {**HEAD, "relay-heartbeat": "15"}
    timeout = kind.http.Timeout(5, read=read)
    kind.post([Answer(headers=dict(head), parts=["ReadTimeout"]), whole()], timeout=timeout)
    # Both are the bodies': before the head of the first, it is the caller's own.
    assert kind.heads == [read, lives]
    assert [timeout["read"] for timeout in kind.timeouts] == [lives, lives]


def test_no_read_goes_beyond_the_deadline_of_the_whole_stream(kind: Kind) -> None:
    policy = Policy(deadline=10, clock=lambda: kind.now, random=lambda: 1.0)
    script: Script = [Answer(parts=[frame(1), "+4", "ReadTimeout"]), Answer(parts=["+6", "ReadTimeout"])]
    seen = kind.post(script, kind.transport(policy), timeout=60)
    assert isinstance(seen.error, kind.client.ResumeTimedOut)
    assert "deadline of the whole stream (10 s)" in str(seen.error)
    assert [timeout["read"] for timeout in kind.timeouts] == [10, 5.5]


@pytest.mark.parametrize("read", [600, None])
def test_a_relayed_stream_is_not_silent_for_longer_than_silence(kind: Kind, read: float | None) -> None:
    kind.post([Answer(parts=["ReadTimeout"]), whole()], timeout=kind.http.Timeout(5, read=read))
    assert [timeout["read"] for timeout in kind.timeouts] == [60, 60]


def test_a_server_that_is_no_relay_may_be_as_silent_as_the_sdk_allows(kind: Kind) -> None:
    kind.post([Answer(headers={}, parts=[b"x"])], timeout=kind.http.Timeout(5, read=600))
    assert [timeout["read"] for timeout in kind.timeouts] == [600]


# -- before the head --------------------------------------------------------------------------------------------------

LOST = ["ReadError", "RemoteProtocolError", "WriteError"]


@pytest.mark.parametrize("error", [*LOST, "ReadTimeout", "ConnectError"])
def test_nothing_is_repeated_at_a_server_that_has_not_proved_to_be_a_relay(kind: Kind, error: str) -> None:
    seen = kind.post([error])
    assert type(seen.error) is getattr(kind.http, error)
    assert kind.headers("idempotency-key") == [None]


@pytest.mark.parametrize("error", LOST)
def test_a_relay_is_asked_again_with_the_same_key(kind: Kind, error: str) -> None:
    transport = known(kind)
    seen = kind.post([error, "ConnectError", refused(502, "bad_gateway"), whole()], transport)
    assert (seen.error, seen.body) == (None, frame(1, DONE))
    keys = kind.headers("idempotency-key")
    assert len(keys) == 4
    assert keys[0] is not None
    assert len(set(keys)) == 1
    assert kind.waits == [0.5, 1, 2]


def test_a_time_out_before_the_head_is_the_caller_s(kind: Kind) -> None:
    transport = known(kind)
    seen = kind.post(["ReadTimeout"], transport)
    assert type(seen.error) is kind.http.ReadTimeout
    assert kind.waits == []


def test_the_sdk_s_own_retry_joins_what_it_lost_with_the_rest_of_the_tries(kind: Kind) -> None:
    transport = known(kind, Policy(max_attempts=2, random=lambda: 1.0))
    for _ in range(3):
        assert kind.post(["ReadTimeout", *["ReadError"] * 3], transport).error is not None
    assert kind.post([*["ReadError"] * 3], transport).error is not None
    seen = kind.post([whole()], transport)
    assert seen.error is None
    keys = kind.headers("idempotency-key")
    assert len(set(keys)) == 1
    assert len(keys) == 3 + 3 + 1
    kind.post([whole()], transport)
    assert kind.headers("idempotency-key")[-1] not in keys  # the next answer is a new one


@pytest.mark.parametrize("more", [{"headers": {"authorization": "Bearer other"}}, {"body": {**BODY, "model": "n"}}])
def test_another_request_joins_nothing(kind: Kind, more: dict[str, Any]) -> None:
    transport = known(kind)
    kind.post(["ReadTimeout"], transport)
    kind.post([whole()], transport, **more)
    first, second = kind.headers("idempotency-key")
    assert first != second


def test_what_was_lost_is_forgotten_in_time(kind: Kind) -> None:
    now = [0.0]
    transport = known(kind, Policy(max_elapsed=10, clock=lambda: now[0]))
    kind.post(["ReadTimeout"], transport)
    now[0] = 11
    kind.post([whole()], transport)
    first, second = kind.headers("idempotency-key")
    assert first != second


def test_each_request_has_a_key_of_its_own(kind: Kind) -> None:
    transport = known(kind)
    kind.post([whole()], transport)
    kind.post([whole()], transport)
    first, second = kind.headers("idempotency-key")
    assert first != second


def test_a_stream_that_cannot_be_resumed_has_not_proved_anything(kind: Kind) -> None:
    """A relay honours no key where it keeps no log: what is lost there must not be sent again."""
    transport = kind.transport()
    unlogged = Answer(headers={**HEAD, "relay-resumable": "false"}, parts=[b"data: {}\n\n"])
    kind.post([unlogged], transport)
    seen = kind.post(["ReadError", whole()], transport)
    assert isinstance(seen.error, kind.http.ReadError)
    assert kind.headers("idempotency-key") == [None, None]


def test_another_path_of_the_same_host_has_not_proved_anything(kind: Kind) -> None:
    transport = known(kind)
    seen = kind.post(["ReadError"], transport, url="http://relay.test/other/v1/chat/completions")
    assert type(seen.error) is kind.http.ReadError
    assert kind.headers("idempotency-key") == [None]


def test_a_relay_by_the_user_s_word_has_a_key_at_once(kind: Kind) -> None:
    seen = kind.post(["ReadError", whole()], kind.transport(Policy(assume_relay=True)))
    assert seen.error is None
    assert len(kind.requests) == 2


def test_the_user_s_own_key_stays(kind: Kind) -> None:
    transport = known(kind)
    seen = kind.post(["ReadError", whole()], transport, headers={"Idempotency-Key": "mine"})
    assert seen.error is None
    assert kind.headers("idempotency-key") == ["mine", "mine"]


def test_what_never_left_is_the_sdk_s_to_repeat(kind: Kind) -> None:
    seen = kind.post(["ConnectError"], known(kind))
    assert type(seen.error) is kind.http.ConnectError


def test_after_the_bound_the_loss_is_raised_as_it_is(kind: Kind) -> None:
    transport = known(kind, Policy(max_attempts=2))
    seen = kind.post(["ReadError"] * 3, transport)
    assert type(seen.error) is kind.http.ReadError
    assert kind.script == []


def test_refusals_are_handed_through(kind: Kind) -> None:
    transport = known(kind)
    for status in (400, 401, 429, 500, 502, 503):
        seen = kind.post([refused(status, "some_code")], transport)
        assert (seen.status, b"some_code" in seen.body, seen.error) == (status, True, None)
    assert kind.waits == []


def test_a_key_that_a_relay_without_its_store_cannot_honour_is_taken_back(kind: Kind) -> None:
    transport = known(kind)
    unlogged = Answer(headers={**HEAD, "relay-resumable": "false"}, parts=[b"data: {}\n\n"])
    seen = kind.post([refused(503, "store_unavailable"), unlogged], transport)
    assert (seen.error, seen.body) == (None, b"data: {}\n\n")
    assert [key is None for key in kind.headers("idempotency-key")] == [False, True]
    seen = kind.post(["ReadError", refused(503, "store_unavailable"), "ReadError", whole()], transport)
    assert (seen.error, seen.body) == (None, frame(1, DONE))
    assert None not in kind.headers("idempotency-key")[2:]


def test_a_key_in_flight_is_waited_for(kind: Kind) -> None:
    transport = known(kind)
    seen = kind.post([refused(409, "idempotency_key_in_flight", retry_after="3"), whole()], transport)
    assert (seen.error, seen.body, kind.waits) == (None, frame(1, DONE), [3])
    assert len(set(kind.headers("idempotency-key"))) == 1
    seen = kind.post([refused(409, "conflict")], transport)
    assert (seen.status, b"conflict" in seen.body) == (409, True)


# -- what is none of its business -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/event-stream"},
        {**HEAD, "relay-resumable": "false"},
        {**HEAD, "content-encoding": "x-unknown"},
    ],
)
def test_other_streams_come_as_they_come(kind: Kind, headers: dict[str, str]) -> None:
    parts: list[bytes | str] = [b"data: {}\n", b"\nda", b"ta:\n\n\r\n"]
    seen = kind.post([Answer(headers=dict(headers), parts=[*parts, "ReadError"])])
    assert seen.parts == parts
    assert type(seen.error) is kind.http.ReadError
    assert len(kind.requests) == 1


@pytest.mark.parametrize(
    ("method", "url", "more"),
    [
        ("POST", URL, {"json": {**BODY, "stream": False}}),
        ("POST", URL.replace("chat/completions", "embeddings"), {"json": BODY}),
        ("GET", URL, {}),
        ("POST", URL, {"content": b"no JSON"}),
    ],
)
def test_other_requests_go_out_as_they_are(kind: Kind, method: str, url: str, more: dict[str, Any]) -> None:
    transport = known(kind)
    seen = kind.ask(method, [Answer(parts=[frame(1), frame(3)[:5], "ReadError"])], transport, url, **more)
    assert seen.parts == [frame(1), frame(3)[:5]]
    assert type(seen.error) is kind.http.ReadError
    assert kind.headers("idempotency-key") == [None]


def test_a_body_made_while_it_is_sent_is_left_alone() -> None:
    kind = KINDS["httpx"]()
    seen = kind.ask("POST", [Answer(parts=["ReadError"])], known(kind), content=iter([b'{"stream":true}']))
    assert type(seen.error) is httpx.ReadError


def test_a_resume_of_the_user_s_own_goes_on_from_there(kind: Kind) -> None:
    script: Script = [Answer(parts=["ReadError"]), Answer(parts=[frame(8), frame(9, DONE)])]
    seen = kind.post(script, known(kind), headers={"Last-Event-ID": f"{STREAM}.7"})
    assert seen.body == frame(8) + frame(9, DONE)
    assert kind.headers("last-event-id") == [f"{STREAM}.7"] * 2
    assert kind.headers("idempotency-key")[0] is None  # it generates nothing


def test_options_go_to_the_library_s_transport() -> None:
    with pytest.raises(TypeError, match="verify"):
        ResumingTransport(httpx.HTTPTransport(), verify=False)
    with ResumingTransport(local_address="127.0.0.1") as transport:
        assert transport.inner._pool._local_address == "127.0.0.1"
