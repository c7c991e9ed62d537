"""Reasons to finish: those that are failures, in whatever spelling, those that are none, and all others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.apis import DIALECTS
from relay.protocol.ends import FAILURE, FINISH
from relay.protocol.finish_reasons import FAILED, FINISHED, UNFINISHED, judge, text_of
from relay.protocol.sse import Event

FAILING = [
    "abort", "aborted", "ABORTED", "error", "ERROR", "Error", "network_error", "NETWORK_ERROR", "networkError",
    "NetworkError", "networkerror", "insufficient_system_resource", "internal_server_error", "InternalServerError",
    "engine_error", "engine_overloaded", "server-error", "timeout", "TIMEOUT", "timed_out", "timedout", "failed",
    "failure", "cancelled", "canceled", "cancel", "USER_CANCEL", "exception", "ERROR_LIMIT", "APIError", "ReadTimeout",
    {"type": "abort", "message": "x"},
]  # fmt: skip
WHOLE = [
    "stop", "STOP", "length", "tool_calls", "function_call", "content_filter", "eos", "eos_token", "stop_sequence",
    "end_turn", "max_tokens", "MAX_TOKENS", "refusal", "pause_turn", "model_context_window_exceeded", "model_length",
    "SAFETY", "RECITATION", "time_limit", "load", "guardrail_intervened", "MALFORMED_FUNCTION_CALL", "sensitive",
    "mirrors", "unknown", "OTHER", "1", {"type": "stop", "matched": 2}, {"type": "length"}, True, 1, "error" * 30,
]  # fmt: skip
NONE: list[Any] = [
    "", " ", "null", "Null", "NULL", "null ", "none", "None", "NONE", "nil", "undefined", "not_finished",
    "FINISH_REASON_UNSPECIFIED", "in_progress", None, False, 0, {}, [], {"type": None}, {"type": "null"},
]  # fmt: skip


@pytest.mark.parametrize("reason", FAILING)
def test_a_failure(reason: Any) -> None:
    assert judge(reason) == FAILED
    assert text_of(reason)


@pytest.mark.parametrize("reason", WHOLE)
def test_an_end(reason: Any) -> None:
    assert judge(reason) == FINISHED


@pytest.mark.parametrize("reason", NONE)
def test_none_at_all(reason: Any) -> None:
    assert judge(reason) == UNFINISHED


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.just("type"), x)))
def test_never_a_fault_of_its_own(reason: Any) -> None:
    assert judge(reason) in (FAILED, FINISHED, UNFINISHED)
    text_of(reason)


@pytest.mark.parametrize("spelled", ['"NETWORK_ERROR"', '"Abort"', '{"type":"abort"}'])
@pytest.mark.parametrize(
    ("api", "event"),
    [
        ("chat", b'{"choices":[{"index":0,"delta":{},"finish_reason":%b}]}'),
        ("messages", b'{"type":"message_delta","delta":{"stop_reason":%b}}'),
    ],
)
def test_what_a_stream_makes_of_it(api: str, event: bytes, spelled: str) -> None:
    watch = DIALECTS[api].watch()
    assert watch.see(Event(b"", event % spelled.encode())) & FAILURE
    assert watch.error is not None
    assert watch.error.code
    assert not DIALECTS[api].watch().see(Event(b"", event % b'"Null"')) & (FAILURE | FINISH)
