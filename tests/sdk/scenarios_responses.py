"""OpenAI responses: typed events, sequence numbers or none, usage in the terminal event."""

from __future__ import annotations

from typing import Any

from tests.sdk.scenarios import (
    ARGUMENTS,
    BAD_KEY,
    LIMITED,
    RATE_LIMITED,
    TEXT,
    WORDS,
    Scenario,
    late,
    paced,
    refused,
    with_crlf,
    with_keepalives,
    with_upstream_ids,
)
from tests.support import streams
from tests.support.streams import (
    Body,
    call_item,
    data,
    event,
    item,
    response,
    response_end,
    response_start,
    text_item,
)

USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 16,
}


def frames(*bodies: Body, numbered: bool = True, named: bool = True) -> tuple[str, ...]:
    sent = streams.numbered(bodies) if numbered else bodies
    return tuple(event(body) if named else data(body) for body in sent)


def message(index: int) -> tuple[Body, ...]:
    return text_item(index, WORDS, obfuscation="x")


def function_call(index: int) -> tuple[Body, ...]:
    return call_item(index, ARGUMENTS)


def reasoning(index: int) -> tuple[Body, ...]:
    at: Body = {"summary_index": 0}
    part: Body = {"type": "summary_text", "text": "Think twice."}
    return item(
        index,
        {"id": "rs_1", "type": "reasoning", "summary": []},
        {"id": "rs_1", "type": "reasoning", "summary": [part]},
        {"type": "response.reasoning_summary_part.added", "part": {**part, "text": ""}, **at},
        {"type": "response.reasoning_summary_text.delta", "delta": "Think ", **at},
        {"type": "response.reasoning_summary_text.delta", "delta": "twice.", **at},
        {"type": "response.reasoning_summary_text.done", "text": "Think twice.", **at},
        {"type": "response.reasoning_summary_part.done", "part": part, **at},
    )


def whole(*items: tuple[Body, ...], status: str = "completed", **more: Any) -> tuple[Body, ...]:
    return (*response_start(), *(body for item in items for body in item), response_end(status, items, USAGE, **more))


PLAIN = whole(message(0))
ERROR: Body = {"code": "server_error", "message": "The server had an error", "param": None}
FLAT_ERROR: Body = {"type": "error", **ERROR}
NESTED_ERROR: Body = {"type": "error", "error": {"type": "server_error", **ERROR}}
FAILED: Body = {
    "type": "response.failed",
    "response": response("failed", [], error={"code": "server_error", "message": "The server had an error"}),
}

SUCCESS = {"text": TEXT, "usage": USAGE}
SCENARIOS: dict[str, Scenario] = {
    "text": Scenario(paced(*frames(*PLAIN), cut_at="🌍".encode(), upstream_headers={"x-request-id": "req_1"}), SUCCESS),
    "tools": Scenario(
        paced(*frames(*whole(message(0), function_call(1)))),
        {"text": TEXT, "tools": [{"id": "call_a", "name": "get_weather", "arguments": '{"city": "Paris"}'}]},
    ),
    "reasoning": Scenario(
        paced(*frames(*whole(reasoning(0), message(1)))), {"text": TEXT, "reasoning": "Think twice."}
    ),
    "incomplete": Scenario(
        paced(*frames(*whole(message(0), status="incomplete", incomplete_details={"reason": "max_output_tokens"}))),
        SUCCESS,
    ),
    "failed": Scenario(paced(*frames(*PLAIN[:6], FAILED)), {"text": "Hel" + "lo "}),
    "done_marker": Scenario(paced(*frames(*PLAIN), "data: [DONE]\n\n"), SUCCESS),
    "no_sequence_numbers": Scenario(paced(*frames(*PLAIN, numbered=False)), SUCCESS),
    "no_event_lines": Scenario(paced(*frames(*PLAIN, named=False)), SUCCESS),
    "keepalives": Scenario(paced(*with_keepalives(*frames(*PLAIN))), SUCCESS),
    "upstream_ids": Scenario(paced(*with_upstream_ids(*frames(*PLAIN))), SUCCESS),
    "crlf": Scenario(paced(*with_crlf(*frames(*PLAIN))), SUCCESS),
    "late_head": Scenario(late(paced(*frames(*PLAIN))), SUCCESS, committed_early=True),
    # With response.failed: where it is left out, the relay adds it (tests/sdk/test_ends.py).
    "error_midstream": Scenario(paced(*frames(*PLAIN[:6], FLAT_ERROR, FAILED)), {"text": "Hel" + "lo "}),
    "error_nested": Scenario(paced(*frames(*PLAIN[:6], NESTED_ERROR)), {"text": "Hel" + "lo "}),
    "error_401": refused(401, {"error": BAD_KEY}, {"x-request-id": "req_denied"}),
    "error_429": refused(429, {"error": LIMITED}, RATE_LIMITED),
}
