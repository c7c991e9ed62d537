"""OpenAI responses: typed events, sequence numbers or none, usage in the terminal event."""

from __future__ import annotations

import json
from typing import Any

from tests.sdk.scenarios import (
    RATE_LIMITED,
    Scenario,
    late,
    paced,
    refused,
    with_crlf,
    with_keepalives,
    with_upstream_ids,
)

WORDS = ("Hel", "lo ", "wörld\u2028\u0085", "🌍", "!")
TEXT = "".join(WORDS)
USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 16,
}
Body = dict[str, Any]


def response(status: str, output: list[Body], **more: Any) -> Body:
    base: Body = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1760000000,
        "model": "gpt-x",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }
    return {**base, "status": status, "output": output, "usage": None, **more}


def frames(*bodies: Body, numbered: bool = True, named: bool = True) -> tuple[str, ...]:
    found = []
    for number, body in enumerate(bodies):
        full = {**body, "sequence_number": number} if numbered else body
        name = f"event: {body['type']}\n" if named else ""
        found.append(f"{name}data: {json.dumps(full, ensure_ascii=False)}\n\n")
    return tuple(found)


def opening() -> tuple[Body, ...]:
    return tuple({"type": f"response.{kind}", "response": response("in_progress", [])} for kind in OPENING)


OPENING = ("created", "in_progress")


def item(index: int, started: Body, done: Body, *between: Body) -> tuple[Body, ...]:
    return (
        {"type": "response.output_item.added", "output_index": index, "item": started},
        *({**body, "output_index": index, "item_id": done["id"]} for body in between),
        {"type": "response.output_item.done", "output_index": index, "item": done},
    )


def message(index: int) -> tuple[Body, ...]:
    empty: Body = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    part = {**empty, "text": TEXT}
    text: Body = {"content_index": 0, "logprobs": []}
    return item(
        index,
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]},
        {"type": "response.content_part.added", "content_index": 0, "part": empty},
        *({"type": "response.output_text.delta", "delta": word, "obfuscation": "x", **text} for word in WORDS),
        {"type": "response.output_text.done", "text": TEXT, **text},
        {"type": "response.content_part.done", "content_index": 0, "part": part},
    )


def function_call(index: int) -> tuple[Body, ...]:
    parts = ('{"ci', 'ty": "Par', 'is"}')
    call: Body = {"id": "fc_1", "type": "function_call", "call_id": "call_a", "name": "get_weather"}
    return item(
        index,
        {**call, "arguments": "", "status": "in_progress"},
        {**call, "arguments": "".join(parts), "status": "completed"},
        *({"type": "response.function_call_arguments.delta", "delta": part} for part in parts),
        {"type": "response.function_call_arguments.done", "name": "get_weather", "arguments": "".join(parts)},
    )


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
    output = [events[-1]["item"] for events in items]
    final = {"type": f"response.{status}", "response": response(status, output, usage=USAGE, **more)}
    return (*opening(), *(event for events in items for event in events), final)


PLAIN = whole(message(0))
ERROR: Body = {"code": "server_error", "message": "The server had an error", "param": None}
FLAT_ERROR: Body = {"type": "error", **ERROR}
NESTED_ERROR: Body = {"type": "error", "error": {"type": "server_error", **ERROR}}
FAILED: Body = {
    "type": "response.failed",
    "response": response("failed", [], error={"code": "server_error", "message": "The server had an error"}),
}
BAD_KEY = {
    "message": "Incorrect API key",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_api_key",
}
LIMITED = {"message": "Rate limit reached", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}

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
    "error_midstream": Scenario(paced(*frames(*PLAIN[:6], FLAT_ERROR)), {"text": "Hel" + "lo "}),
    "error_nested": Scenario(paced(*frames(*PLAIN[:6], NESTED_ERROR)), {"text": "Hel" + "lo "}),
    "error_401": refused(401, {"error": BAD_KEY}, {"x-request-id": "req_denied"}),
    "error_429": refused(429, {"error": LIMITED}, RATE_LIMITED),
}
