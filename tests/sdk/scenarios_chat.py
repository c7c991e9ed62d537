"""Chat completions: role chunk, deltas, finish chunk, usage, `[DONE]`, and the ways gateways differ."""

from __future__ import annotations

import json

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
from tests.support.streams import DONE, chat_usage, event
from tests.support.streams import chat as chunk
from tests.support.streams import data as frame

USAGE_CHUNK = event(chat_usage(11, 5, completion_tokens_details={"reasoning_tokens": 2}))
USAGE = json.loads(USAGE_CHUNK.removeprefix("data: "))["usage"]

ROLE = chunk({"role": "assistant", "content": "", "refusal": None}, x_vendor={"provider": "acme"})
DELTAS = tuple(chunk({"content": word}) for word in WORDS)
STOP = chunk({}, "stop")
PLAIN = (ROLE, *DELTAS, STOP, USAGE_CHUNK, DONE)


def tool_delta(index: int, arguments: str, **start: str) -> str:
    return event(streams.tool_delta(index, arguments, **start))


TOOLS = (
    chunk({"role": "assistant", "content": None}),
    tool_delta(0, "", id="call_a", name="get_weather"),
    *(tool_delta(0, part) for part in ARGUMENTS),
    tool_delta(1, "", id="call_b", name="get_time"),
    *(tool_delta(1, part) for part in ('{"zone"', ': "CET"}')),
    chunk({}, "tool_calls"),
    USAGE_CHUNK,
    DONE,
)


def reasoning(name: str) -> Scenario:
    """The thoughts under one of the names that providers give them."""

    def thought(text: str) -> str:
        if name == "reasoning_details":
            detail = {"type": "reasoning.text", "text": text, "format": "unknown", "index": 0}
            return chunk({"content": "", "reasoning_details": [detail]})
        return chunk({"content": None, name: text})

    frames = (ROLE, thought("Think "), thought("twice."), *DELTAS, STOP, DONE)
    return Scenario(paced(*frames), {"text": TEXT, "reasoning": "Think twice."})


ERROR = {"message": "The server is overloaded", "type": "server_error", "param": None, "code": "overloaded"}
ERROR_CHOICE = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}

SUCCESS = {"text": TEXT, "usage": USAGE}
SCENARIOS: dict[str, Scenario] = {
    "text": Scenario(paced(*PLAIN, cut_at="🌍".encode(), upstream_headers={"x-request-id": "req_1"}), SUCCESS),
    "tools": Scenario(
        paced(*TOOLS),
        {
            "tools": [
                {"id": "call_a", "name": "get_weather", "arguments": '{"city": "Paris"}'},
                {"id": "call_b", "name": "get_time", "arguments": '{"zone": "CET"}'},
            ]
        },
    ),
    "reasoning_content": reasoning("reasoning_content"),
    "reasoning": reasoning("reasoning"),
    "reasoning_details": reasoning("reasoning_details"),
    "refusal": Scenario(paced(ROLE, chunk({"refusal": "I "}), chunk({"refusal": "won't."}), STOP, DONE), {"text": ""}),
    "usage_on_finish": Scenario(paced(ROLE, *DELTAS, chunk({}, "stop", usage=USAGE), DONE), SUCCESS),
    "usage_on_every_chunk": Scenario(
        paced(ROLE, *(chunk({"content": word}, usage=USAGE) for word in WORDS), STOP, DONE), SUCCESS
    ),
    "no_role_chunk": Scenario(paced(*DELTAS, STOP, DONE), {"text": TEXT}),
    "keepalives": Scenario(paced(*with_keepalives(*PLAIN)), SUCCESS),
    "upstream_ids": Scenario(paced(*with_upstream_ids(*PLAIN)), SUCCESS),
    "crlf": Scenario(paced(*with_crlf(*PLAIN)), SUCCESS),
    "late_head": Scenario(late(paced(*PLAIN)), SUCCESS, committed_early=True),
    "error_midstream": Scenario(paced(ROLE, *DELTAS[:3], frame({"error": ERROR}), DONE), error={"code": "overloaded"}),
    "error_event_line": Scenario(
        paced(ROLE, *DELTAS[:3], "event: error\n" + frame({"error": ERROR})), error={"code": "overloaded"}
    ),
    "error_finish_reason": Scenario(
        paced(ROLE, *DELTAS[:3], chunk(None, error=ERROR, choices=[ERROR_CHOICE]), DONE),
        error={"code": "overloaded"},
    ),
    "error_401": refused(401, {"error": BAD_KEY}, {"x-request-id": "req_denied", "www-authenticate": "Bearer"}),
    "error_429": refused(429, {"error": LIMITED}, RATE_LIMITED),
}
