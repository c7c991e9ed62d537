"""Refusals before a stream: one status and code each, spelled as each API's clients read them."""

from __future__ import annotations

import json

import pytest

from relay.protocol import errors
from relay.protocol.apis import DIALECTS
from relay.protocol.errors import ApiError

CONTRACT = [
    (errors.InvalidLastEventId("Bad id."), 400, "invalid_last_event_id"),
    (errors.ResumeNotSupported(), 400, "resume_not_supported"),
    (errors.StreamNotFound(), 404, "stream_not_found"),
    (errors.StreamExpired(), 410, "stream_expired"),
    (errors.PositionUnknown(), 410, "position_unknown"),
    (errors.ResponseIdAmbiguous(), 410, "response_id_ambiguous"),
    (errors.StoreBehind(), 503, "store_behind"),
    (errors.StoreUnavailable(), 503, "store_unavailable"),
]


def all_errors(root: type[ApiError] = ApiError) -> list[type[ApiError]]:
    return [root, *(found for child in root.__subclasses__() for found in all_errors(child))]


@pytest.mark.parametrize(("error", "status", "code"), CONTRACT, ids=[code for *_, code in CONTRACT])
def test_the_outcomes_of_a_resume(error: ApiError, status: int, code: str) -> None:
    assert (error.status, error.code) == (status, code)
    assert error.message.endswith(".")


def test_only_a_store_that_is_away_or_behind_is_worth_another_try() -> None:
    # SDKs try 408, 409, 429 and 5xx again by themselves.
    for error, status, _ in CONTRACT:
        assert (status >= 500) == ("retry-after" in error.headers)
        assert status not in (408, 409, 429)


def test_a_key_in_flight_is_worth_another_try() -> None:
    error = errors.IdempotencyKeyInFlight()
    assert (error.status, error.code, error.headers) == (409, "idempotency_key_in_flight", {"retry-after": "1"})
    body = json.loads(DIALECTS["messages"].error_body(error, "req_1"))
    assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", error.code)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_the_tree_in_the_docstring_names_every_error(kind: type[ApiError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    if kind is not ApiError:
        line = next(line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line)
        codes = ", ".join((kind.code, *vars(kind).get("further_codes", ())))
        assert line.endswith(f" {kind.status}  {codes}")


@pytest.mark.parametrize(("error", "status", "code"), CONTRACT, ids=[code for *_, code in CONTRACT])
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_in_openais_shape(api: str, error: ApiError, status: int, code: str) -> None:
    body = json.loads(DIALECTS[api].error_body(error, "req_1"))
    assert list(body) == ["error"]
    assert body["error"]["message"] == error.message
    assert body["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert body["error"]["param"] is None
    assert body["error"]["code"] == code


@pytest.mark.parametrize(("error", "status", "code"), CONTRACT, ids=[code for *_, code in CONTRACT])
def test_in_anthropics_shape(error: ApiError, status: int, code: str) -> None:
    body = json.loads(DIALECTS["messages"].error_body(error, "req_1"))
    assert body["type"] == "error"
    assert body["request_id"] == "req_1"
    assert body["error"]["message"] == error.message
    assert body["error"]["code"] == code
    kinds = {400: "invalid_request_error", 404: "not_found_error", 503: "overloaded_error"}
    assert body["error"]["type"] == kinds.get(status, "invalid_request_error")


@pytest.mark.parametrize("api", list(DIALECTS))
def test_a_message_may_hold_any_text(api: str) -> None:
    message = 'a "model"\n\x00 with 😀'
    body = json.loads(DIALECTS[api].error_body(errors.BadRequest(message), "req_1"))
    assert body["error"]["message"].startswith('a "model"')
