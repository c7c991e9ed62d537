"""The three formats as these tests need them: requests, the order of events, what differs between runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tests.support.sseclient import RawEvent
from tests.support.streams import Api

KEY = "test-key"

_GRAMMAR: dict[Api, re.Pattern[str]] = {
    "chat": re.compile(r"(delta )+finish (usage )?done"),
    "messages": re.compile(
        r"message_start (content_block_start (content_block_delta )*content_block_stop )+"
        r"message_delta message_stop"
    ),
    "responses": re.compile(
        r"created in_progress (output_item\.added ((?!output_item)\S+ )+output_item\.done )+completed"
    ),
}

# What an upstream makes up for every answer: ids, times, llama.cpp's measurements. Nothing else may differ.
_FRESH = re.compile(r'"(?P<name>id|item_id|created|created_at|completed_at)":(?:"[^"]*"|[0-9.]+)|"timings":\{[^{}]*\}')


def request(api: Api, model: str, prompt: str) -> dict[str, Any]:
    """A streaming request for a short answer that is the same each time."""
    base: dict[str, Any] = {"model": model, "stream": True, "temperature": 0}
    turns = [{"role": "user", "content": prompt}]
    match api:
        case "chat":
            return base | {"messages": turns, "max_tokens": 24, "stream_options": {"include_usage": True}}
        case "messages":
            return base | {"messages": turns, "max_tokens": 24}
        case "responses":
            return base | {"input": prompt, "max_output_tokens": 24}


def is_whole(api: Api, events: Sequence[RawEvent]) -> bool:
    """True for a stream in the API's own order, from its first event to its terminal one."""
    kinds = [_kind(api, event) for event in events]
    return _GRAMMAR[api].fullmatch(" ".join(kind for kind in kinds if kind != "ping")) is not None


def normal(event: RawEvent) -> tuple[str | None, str]:
    """The event's type and its data byte for byte, but for what an upstream makes up afresh."""
    return event.event, _FRESH.sub(lambda found: f'"{found["name"] or "timings"}":*', event.data or "")


def error_code(api: Api, events: Sequence[RawEvent]) -> str:
    """The code in the error frame that these last events of a stream are, after a check of its form."""
    if api == "chat":
        frame, done = events
        assert done.data == "[DONE]"
        assert (frame.event, frame.json.keys()) == (None, {"error"})
    else:
        frame, *failed = events
        assert [event.event for event in failed] == ([] if api == "messages" else ["response.failed"])
        assert (frame.event, frame.json["type"]) == ("error", "error")
    code: str = frame.json["error"]["code"]
    assert frame.json["error"]["message"]
    if api == "responses":
        assert frame.json["code"] == code
    return code


def _kind(api: Api, event: RawEvent) -> str:
    if event.data == "[DONE]":
        return "done"
    if api != "chat":
        return str(event.json["type"]).removeprefix("response.")
    choices = event.json["choices"]
    if not choices:
        return "usage"
    return "delta" if choices[0]["finish_reason"] is None else "finish"
