"""Anthropic messages: named events, content blocks, pings anywhere, cumulative usage."""

from __future__ import annotations

import json
from typing import Any

from tests.sdk.scenarios import Scenario, late, paced, refused, with_crlf, with_keepalives, with_upstream_ids

WORDS = ("Hel", "lo ", "wörld\u2028\u0085", "🌍", "!")
TEXT = "".join(WORDS)
USAGE = {
    "input_tokens": 12,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 0,
    "output_tokens": 1,
}


def frame(kind: str, **body: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **body}, ensure_ascii=False)}\n\n"


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> tuple[str, ...]:
    return (
        frame("content_block_start", index=index, content_block=start),
        *(frame("content_block_delta", index=index, delta=delta) for delta in deltas),
        frame("content_block_stop", index=index),
    )


def text_block(index: int) -> tuple[str, ...]:
    deltas = ({"type": "text_delta", "text": word} for word in WORDS)
    return block(index, {"type": "text", "text": ""}, *deltas)


def ending(reason: str) -> tuple[str, ...]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return (frame("message_delta", delta=delta, usage={"output_tokens": 9}), frame("message_stop"))


START = frame(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": USAGE,
        "x_vendor": "acme",
    },
)
PING = frame("ping")
PLAIN = (START, PING, *text_block(0), *ending("end_turn"))
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
ARGUMENTS = ("", '{"ci', 'ty": "Par', 'is"}')
TOOLS = (
    START,
    *text_block(0),
    *block(1, TOOL, *({"type": "input_json_delta", "partial_json": part} for part in ARGUMENTS)),
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


def error_body(kind: str, message: str) -> dict[str, Any]:
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
