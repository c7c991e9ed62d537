"""Anthropic messages: named events, content blocks, pings anywhere, cumulative usage."""

from __future__ import annotations

from typing import Any

from tests.sdk.scenarios import (
    ARGUMENTS,
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
from tests.support.streams import Body, event, message_end, message_start, typed

USAGE = {
    "input_tokens": 12,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 0,
    "output_tokens": 1,
}


def frame(kind: str, **body: Any) -> str:
    return event(typed(kind, **body))


def block(index: int, start: Body, *deltas: Body) -> tuple[str, ...]:
    return tuple(event(body) for body in streams.block(index, start, deltas))


def text_block(index: int) -> tuple[str, ...]:
    return tuple(event(body) for body in streams.text_block(index, WORDS))


def ending(reason: str) -> tuple[str, ...]:
    return tuple(event(body) for body in message_end(reason, {"output_tokens": 9}))


START = event(message_start(USAGE, x_vendor="acme"))
PING = frame("ping")
PLAIN = (START, PING, *text_block(0), *ending("end_turn"))
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
TOOLS = (
    START,
    *text_block(0),
    *block(1, TOOL, *({"type": "input_json_delta", "partial_json": part} for part in ("", *ARGUMENTS))),
    *ending("tool_use"),
)
THINKING = (
    START,
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Think "},
        {"type": "thinking_delta", "thinking": "twice."},
        {"type": "signature_delta", "signature": "EqQBCgIYAhIM+/=="},
    ),
    *text_block(1),
    *ending("end_turn"),
)


def error_body(kind: str, message: str) -> Body:
    return {"error": {"type": kind, "message": message}, "request_id": "req_failed"}


BAD_KEY = {"type": "error", **error_body("authentication_error", "invalid x-api-key")}
LIMITED = {
    "type": "error",
    **error_body("rate_limit_error", "Number of requests has exceeded your rate limit"),
}
LIMIT_HEADERS = {
    "retry-after": "7",
    "anthropic-ratelimit-requests-remaining": "0",
    "request-id": "req_limited",
}

SUCCESS = {"text": TEXT, "usage": {**USAGE, "output_tokens": 9}}
SCENARIOS: dict[str, Scenario] = {
    "text": Scenario(paced(*PLAIN, cut_at="🌍".encode(), upstream_headers={"request-id": "req_1"}), SUCCESS),
    "tools": Scenario(
        paced(*TOOLS), {"tools": [{"id": "toolu_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}]}
    ),
    "thinking": Scenario(paced(*THINKING), {"text": TEXT, "reasoning": "Think twice."}),
    "keepalives": Scenario(paced(*with_keepalives(*PLAIN)), SUCCESS),
    "upstream_ids": Scenario(paced(*with_upstream_ids(*PLAIN)), SUCCESS),
    "crlf": Scenario(paced(*with_crlf(*PLAIN)), SUCCESS),
    "late_head": Scenario(late(paced(*PLAIN)), SUCCESS, committed_early=True),
    "error_midstream": Scenario(
        paced(*PLAIN[:5], frame("error", **error_body("overloaded_error", "Overloaded"))), error={}
    ),
    "error_401": refused(401, BAD_KEY, {"request-id": "req_denied"}),
    "error_429": refused(429, LIMITED, LIMIT_HEADERS),
}
