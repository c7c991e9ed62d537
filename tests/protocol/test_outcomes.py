"""The one table of ends: its names are a contract with dashboards and clients."""

from __future__ import annotations

import pytest

from relay.protocol import errors
from relay.protocol.apis import BY_PATH, DIALECTS, of_path
from relay.protocol.outcomes import (
    OUTCOMES,
    Cause,
    Ending,
    Outcome,
    StreamFailure,
    cause_of,
    is_lost,
    late_status,
    parse_outcome,
    refused_late,
)

ALL: list[Outcome] = [*Cause, *Ending]


def test_the_causes() -> None:
    assert {cause.value for cause in Cause} == {
        "upstream_disconnected",
        "upstream_error",
        "upstream_refused",
        "upstream_timeout",
        "upstream_malformed",
        "event_too_large",
        "stream_too_large",
        "max_duration",
        "producer_lost",
        "store_lost",
        "shutdown",
    }


def test_the_ends_that_are_no_failure() -> None:
    assert {ending.value for ending in Ending} == {"completed", "stopped", "abandoned"}


@pytest.mark.parametrize("end", ALL)
def test_a_name_finds_its_outcome(end: Outcome) -> None:
    assert parse_outcome(end.value) is end
    assert str(end) == end.value


@pytest.mark.parametrize("name", ["", "Completed", "complete", "error", "upstream-error"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        parse_outcome(name)


@pytest.mark.parametrize("end", [end for end in ALL if end is not Ending.COMPLETED])
def test_every_end_but_a_complete_one_says_what_happened(end: Outcome) -> None:
    message = OUTCOMES[end].message
    assert message.endswith(".")
    assert message[0].isupper()


def test_each_outcome_has_its_row_and_each_cause_all_of_it() -> None:
    assert OUTCOMES.keys() == set(ALL)
    for cause in Cause:
        row = OUTCOMES[cause]
        assert row.message, cause
        assert row.meaning, cause
        assert row.runbook, cause


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (Cause.UPSTREAM_DISCONNECTED, 502, "upstream_disconnected"),
        (Cause.UPSTREAM_TIMEOUT, 504, "upstream_timeout"),
        (Cause.UPSTREAM_MALFORMED, 502, "upstream_malformed"),
        (Cause.MAX_DURATION, 504, "upstream_timeout"),
        (Cause.SHUTDOWN, 503, "draining"),
    ],
)
def test_the_refusals_where_there_is_no_stream_yet(end: Outcome, status: int, code: str) -> None:
    row = OUTCOMES[end]
    assert row.refusal is not None
    refusal = row.refusal(row.message)
    assert (refusal.status, refusal.code, refusal.message) == (status, code, row.message)
    assert ("retry-after" in refusal.headers) == (status == 503)


def test_the_cause_of_a_stream_whose_call_failed_after_it_had_begun() -> None:
    assert cause_of(errors.UpstreamTimeout("Late.")) is Cause.UPSTREAM_TIMEOUT
    assert cause_of(errors.UpstreamUnreachable("Gone.")) is Cause.UPSTREAM_DISCONNECTED
    assert cause_of(errors.Unavailable("Busy.")) is Cause.UPSTREAM_DISCONNECTED


def test_a_failure_has_its_causes_message_or_its_own() -> None:
    assert StreamFailure(Cause.SHUTDOWN).message == OUTCOMES[Cause.SHUTDOWN].message
    failure = StreamFailure(Cause.UPSTREAM_REFUSED, "The upstream answered 429: slow down")
    assert failure.message == "The upstream answered 429: slow down"
    assert "upstream_refused" in str(failure)


def test_the_apis() -> None:
    assert {name: dialect.path for name, dialect in DIALECTS.items()} == {
        "chat": "/v1/chat/completions",
        "messages": "/v1/messages",
        "responses": "/v1/responses",
        "sse": "",  # an application's own
    }
    assert set(BY_PATH) == {"/v1/chat/completions", "/v1/messages", "/v1/responses"}


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/messages", "messages"),
        ("/v1/messages/count_tokens", "messages"),
        ("/v1/responses/resp_1/cancel", "responses"),
        ("/v1/responsesx", "chat"),
        ("/v1/messages2", "chat"),
        ("/v1/models", "chat"),
        ("/streams/st_x", "chat"),
        ("/", "chat"),
        ("", "chat"),
    ],
)
def test_the_dialect_of_a_path(path: str, api: str) -> None:
    assert of_path(path).name == api


@pytest.mark.parametrize("end", ALL)
def test_what_was_lost_on_the_way(end: Outcome) -> None:
    lost = ("upstream_disconnected", "upstream_timeout", "producer_lost", "shutdown", "abandoned")
    assert is_lost(end.value) == (end.value in lost)
    assert not is_lost("named_by_a_newer_relay")


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(
    ("status", "lost"),
    [(400, False), (401, False), (403, False), (404, False), (408, True), (409, True), (413, False), (422, False),
     (429, True), (500, True), (503, True), (529, True)],
)  # fmt: skip
def test_a_late_refusal_is_lost_where_another_try_may_get_an_answer(status: int, lost: bool, answered: bool) -> None:
    told = refused_late(status, "The upstream answered 400: no. The upstream answered 500: no.", answered=answered)
    assert late_status(told) == status
    assert is_lost("upstream_refused", f'data: {{"message":"{told}"}}') == lost
    assert not is_lost("upstream_error", told)


def test_another_message_has_no_status() -> None:
    assert late_status("The upstream refused the request after the stream had begun.") is None
    assert not is_lost("upstream_refused", "")
