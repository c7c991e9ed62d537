"""What stands between a client and its relay, and what a user sees of it, in all four kinds of client."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from relay.client.policy import Policy
from tests.client.played import (
    DONE,
    HEAD,
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

# -- what the way does ------------------------------------------------------------------------------------------------


def test_a_known_relay_is_asked_for_an_answer_without_compression(kind: Kind) -> None:
    transport = known(kind)
    kind.post([whole()], transport)
    kind.ask("GET", [whole()], transport, f"http://relay.test/streams/{STREAM}")
    kind.ask("GET", [whole()], transport, "http://relay.test/v1/models")
    assert [value == "identity" for value in kind.headers("accept-encoding")] == [True, True, False]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_stream_is_resumed_too(kind: Kind, encoding: str) -> None:
    packed = zlib.compress(frame(1) + frame(2)[:5], wbits=31 if encoding == "gzip" else 15)
    head = {**HEAD, "content-encoding": encoding}
    seen = kind.post([Answer(headers=head, parts=[packed, "ReadError"]), Answer(parts=[frame(2, DONE)])])
    assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))


@pytest.mark.parametrize("status", [307, 308])
def test_a_resume_follows_a_redirect_of_its_own_origin(kind: Kind, status: int) -> None:
    moved = Answer(status, {"location": "/moved/v1/chat/completions?x=1"})
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), moved, Answer(parts=[frame(2, DONE)])])
    assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))
    assert str(kind.requests[2].url) == "http://relay.test/moved/v1/chat/completions?x=1"
    assert kind.headers("last-event-id")[1:] == [f"{STREAM}.1"] * 2
    assert moved.closed


def test_a_redirect_of_the_first_request_is_the_client_s_to_follow(kind: Kind) -> None:
    seen = kind.post([Answer(307, {"location": "/moved"}, [b"moved"])], known(kind))
    assert (seen.status, seen.body, len(kind.requests)) == (307, b"moved", 1)


@pytest.mark.parametrize("location", ["https://relay.test/x", "http://other.test/x", "http://[", ""])
def test_a_redirect_that_leads_elsewhere_is_not_followed(kind: Kind, location: str) -> None:
    moved = Answer(307, {"location": location})
    kind.post([Answer(parts=[frame(1), "ReadError"]), moved, Answer(parts=[frame(2, DONE)])])
    assert {str(request.url) for request in kind.requests} == {URL} if location else True
    assert len(kind.waits) == (2 if location else 1)


def test_credentials_are_made_anew_for_each_request(kind: Kind) -> None:
    made = iter(range(9))

    def headers() -> dict[str, str]:
        return {"Authorization": f"Bearer {next(made)}"}

    async def awaited() -> dict[str, str]:
        return headers()

    transport = kind.transport(headers=awaited if kind.is_async else headers)
    refusal = refused(401, "invalid_api_key")
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), refusal, Answer(parts=[frame(2, DONE)])], transport)
    assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))
    assert kind.headers("authorization") == ["Bearer 0", "Bearer 1", "Bearer 2"]


def test_an_auth_flow_of_the_library_renews_its_credential(kind: Kind) -> None:
    class Renewing(kind.http.Auth):  # type: ignore[misc,name-defined]
        token = 0

        def auth_flow(self, request: Any) -> Any:
            request.headers["Authorization"] = f"Bearer {self.token}"
            response = yield request
            if response.status_code == 401:
                self.token += 1
                request.headers["Authorization"] = f"Bearer {self.token}"
                yield request

    refusal = refused(401, "expired")
    script: Script = [Answer(parts=[frame(1), "ReadError"]), refusal, Answer(parts=[frame(2, DONE)])]
    seen = kind.post(script, kind.transport(auth=Renewing()))
    assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))
    assert kind.headers("authorization") == ["Bearer 0", "Bearer 1", "Bearer 1"]
    assert len(kind.waits) == 1
    assert refusal.closed


def test_several_base_urls_are_tried_in_turn(kind: Kind) -> None:
    transport = kind.transport(base_urls=["http://relay.test", "http://b.test:81/x/v1/"])
    first = Answer(parts=[frame(1), "ReadError"])
    script: Script = ["ConnectError", first, "ConnectError", refused(502, "x"), Answer(parts=[frame(2, DONE)])]
    seen = kind.post(script, transport)
    assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))
    other = "http://b.test:81/x/v1/chat/completions"
    assert [str(request.url) for request in kind.requests] == [URL, other, other, URL, other]
    assert kind.headers("host") == ["relay.test", "b.test:81", "b.test:81", "relay.test", "b.test:81"]
    assert len(set(kind.headers("idempotency-key"))) == 1


@pytest.mark.parametrize("base", ["relay.test", "ftp://relay.test", "http://", "http://relay.test?x=1"])
def test_a_base_url_that_is_none_is_refused(kind: Kind, base: str) -> None:
    with pytest.raises(ValueError, match="no base URL"):
        kind.transport(base_urls=[base])


# -- what a server sends is bounded -----------------------------------------------------------------------------------


def test_a_refusal_that_never_ends_is_left_after_a_moment(kind: Kind) -> None:
    """By its bytes, and by the time: each part takes a second of the policy's clock."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.25
        return now[0]

    for part, most in ((b"x" * 16_384, 5), (b"x", 10)):
        endless = Answer(502, parts=[part] * 100)
        policy = Policy(clock=clock, random=lambda: 1.0)
        seen = kind.post([Answer(parts=[frame(1), "ReadError"]), endless, whole_from(2)], kind.transport(policy))
        assert (seen.error, seen.body) == (None, frame(1) + frame(2, DONE))
        assert endless.closed
        assert endless.read <= most
    assert kind.timeouts[1]["read"] == 2


def test_a_refusal_before_the_head_is_whole_whatever_was_read_of_it(kind: Kind) -> None:
    parts: list[bytes | str] = [b"x" * 40_000, b"y" * 40_000, b"z" * 40_000]
    seen = kind.post([Answer(503, {}, parts)], known(kind))
    assert (seen.status, seen.body) == (503, b"".join(part for part in parts if isinstance(part, bytes)))


# -- what the user sees -----------------------------------------------------------------------------------------------


def test_giving_up_for_want_of_time_is_a_time_out_of_the_library(kind: Kind) -> None:
    policy = Policy(max_elapsed=1, random=lambda: 1.0)
    away = refused(503, "draining", retry_after="9")
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), away], kind.transport(policy))
    assert isinstance(seen.error, kind.http.TimeoutException)
    assert isinstance(seen.error, kind.client.ResumeTimedOut)
    assert isinstance(seen.error, kind.client.ResumeFailed)
    assert (seen.error.status, seen.error.code, seen.error.reason) == (503, "draining", "timed_out")


def test_the_failure_is_found_in_what_an_sdk_makes_of_it(kind: Kind) -> None:
    seen = kind.post([Answer(parts=[frame(1), "ReadError"]), refused(410, "stream_expired")])
    wrapped = RuntimeError("Connection error.")
    wrapped.__cause__ = ValueError()
    wrapped.__cause__.__context__ = seen.error
    assert kind.client.failure_of(wrapped) is seen.error
    assert kind.client.failure_of(ValueError()) is None
    wrapped.__cause__.__context__ = wrapped
    assert kind.client.failure_of(wrapped) is None


def test_the_transport_counts(kind: Kind) -> None:
    transport = kind.transport()
    kind.post([Answer(parts=[frame(1), "ReadError"]), "ConnectError", Answer(parts=[frame(2, DONE)])], transport)
    kind.post([Answer(parts=[frame(1), "ReadError"]), refused(410, "stream_expired")], transport)
    found = transport.counters
    assert (found.streams, found.cuts, found.attempts, found.resumes, found.gave_up) == (2, 2, 3, 1, 1)


def test_a_failure_is_read_on_from_in_another_process(kind: Kind) -> None:
    headers = kind.client.resume(f"{STREAM}.3")
    seen = kind.post([Answer(parts=[frame(4), "ReadError"]), whole_from(5)], headers=headers)
    assert (seen.error, seen.body) == (None, frame(4) + frame(5, DONE))
    assert kind.headers("last-event-id") == [f"{STREAM}.3", f"{STREAM}.4"]
    with pytest.raises(ValueError, match="no event id"):
        kind.client.resume("17")


# -- streams that are read by their id --------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", f"?last_event_id={STREAM}.1"])
def test_a_stream_that_is_read_by_its_id_is_resumed(kind: Kind, query: str) -> None:
    n = 2 if query else 1
    url = f"http://relay.test/x/streams/{STREAM}{query}"
    script: Script = [Answer(parts=[frame(n), "ReadError"]), "ConnectError", whole_from(n + 1)]
    seen = kind.ask("GET", script, None, url)
    assert (seen.error, seen.body) == (None, frame(n) + frame(n + 1, DONE))
    assert kind.headers("last-event-id") == [None, f"{STREAM}.{n}", f"{STREAM}.{n}"]
    assert kind.headers("idempotency-key") == [None] * 3
    assert [request.url.path for request in kind.requests] == [f"/x/streams/{STREAM}"] * 3


def test_a_response_that_is_retrieved_is_resumed_by_its_stream(kind: Kind) -> None:
    url = "http://relay.test/v1/responses/resp_1?stream=true&starting_after=41"
    last = '{"type":"response.completed"}'
    script: Script = [
        Answer(parts=["ReadError"]),
        Answer(parts=[frame(7), "ReadError"]),
        Answer(parts=[frame(8, last)]),
    ]
    seen = kind.ask("GET", script, None, url)
    assert (seen.error, seen.body) == (None, frame(7) + frame(8, last))
    assert [str(request.url) for request in kind.requests] == [url, url, f"http://relay.test/streams/{STREAM}"]
    assert kind.headers("last-event-id") == [None, None, f"{STREAM}.7"]
