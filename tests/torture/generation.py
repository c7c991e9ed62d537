"""What an upstream sends: event n of call c is a function of the request, c and n, and of nothing else. No I/O.

A call is one POST that arrived at the upstream, so two generations of the same request differ in every event.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

Api = Literal["chat", "messages", "responses"]
Ending = Literal["complete", "error", "cut", "reset", "silent", "refused"]

PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
DONE = "[DONE]"
_MARK = re.compile(r"c(\d+)-n(\d+)-[0-9a-f]{5} ")


class Frame(NamedTuple):
    """One event: its `event:` line, where its API has one, and its data."""

    type: str | None
    data: str

    def encode(self) -> bytes:
        head = f"event: {self.type}\n" if self.type else ""
        return f"{head}data: {self.data}\n\n".encode()


@dataclass(frozen=True)
class Spec:
    """One request's answer: `events` deltas of about `size` bytes, `burst` of them every `pace` seconds."""

    api: Api
    events: int
    pace: float
    size: int = 0
    burst: int = 1
    ending: Ending = "complete"
    head_after: float = 0.0
    """Seconds before the status line."""
    silent_at: int = 0
    """Before this event the upstream is silent …"""
    silent_for: float = 0.0
    """… for so long; for ever where the ending is `silent`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def seconds(self) -> float:
        """About how long the upstream takes."""
        return self.head_after + self.silent_for + self.pace * (self.events / self.burst)


def spec_of(body: Any) -> Spec:
    return Spec(**body["torture"])


def mark(call: int, n: int) -> str:
    """What tells event n of a call from every other event."""
    return f"c{call}-n{n}-{(call * 7919 + n * 104729) % 0xFFFFF:05x} "


def marked(data: str) -> tuple[int, int] | None:
    """The call and the number that an event of an upstream carries; None for an event that the relay made."""
    found = _MARK.search(data)
    return (int(found[1]), int(found[2])) if found else None


class Generation:
    """The events of one call."""

    def __init__(self, spec: Spec, call: int) -> None:
        self.spec = spec
        self.call = call
        before, after = _AROUND[spec.api](spec)
        self._before = before
        self._after = after
        self.total = len(before) + spec.events + len(after)
        """How many events the upstream sends, if nobody stops it."""
        self.frame = lru_cache(maxsize=64)(self._frame)

    @property
    def end(self) -> str | None:
        """What the last event says; None where the upstream sends no last event."""
        return {"complete": "complete", "error": "upstream_error"}.get(self.spec.ending)

    def _frame(self, n: int) -> Frame:
        """Event n, from 1."""
        first = len(self._before)
        if n <= first:
            return self._framed(self._before[n - 1], n)
        if n <= first + self.spec.events:
            pad = "x" * (self.spec.size * ((n * 31) % 7 + 1) // 4)
            return _delta(self.spec.api, self.call, n, mark(self.call, n) + pad)
        return self._framed(self._after[n - 1 - first - self.spec.events], n)

    def _framed(self, event: dict[str, Any] | str, n: int) -> Frame:
        if isinstance(event, str):
            return Frame(None, event)
        text = json.dumps({**event, "torture": mark(self.call, n)}).replace("CALL", str(self.call))
        if self.spec.api == "responses":
            text = text.replace('"NUMBER"', str(n - 1))
        return Frame(event["type"] if self.spec.api != "chat" else None, text)


def _delta(api: Api, call: int, n: int, text: str) -> Frame:
    event: dict[str, Any]
    if api == "chat":
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        event = {"id": f"chatcmpl-{call}", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return Frame(None, json.dumps({**event, "choices": [choice]}))
    if api == "messages":
        event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        return Frame(event["type"], json.dumps(event))
    event = {"type": "response.output_text.delta", "sequence_number": n - 1, "item_id": f"item_{call}"}
    event |= {"output_index": 0, "content_index": 0, "delta": text}
    return Frame(event["type"], json.dumps(event))


Events = list[dict[str, Any] | str]


def _chat(spec: Spec) -> tuple[Events, Events]:
    head = {"id": "chatcmpl-CALL", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    role = {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    finish = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    error = {"error": {"message": "The model is ill.", "type": "server_error", "param": None, "code": "ill"}}
    after: Events = {"complete": [finish, DONE], "error": [error, DONE]}.get(spec.ending, [])  # type: ignore[assignment]
    return [role], after


def _messages(spec: Spec) -> tuple[Events, Events]:
    message: dict[str, Any] = {"id": "msg_CALL", "type": "message", "role": "assistant", "model": "m", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    block = {"type": "text", "text": ""}
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    last: Events = [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    error: Events = [{"type": "error", "error": {"type": "overloaded_error", "message": "The model is ill."}}]
    after = {"complete": last, "error": error}.get(spec.ending, [])
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
    ], after


def _responses(spec: Spec) -> tuple[Events, Events]:
    number = {"sequence_number": "NUMBER"}
    response = {"id": "resp_CALL", "object": "response", "created_at": 1, "status": "in_progress", "model": "m"}
    response |= {"output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    item = {"id": "item_CALL", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    before: Events = [
        {"type": "response.created", **number, "response": response},
        {"type": "response.output_item.added", **number, "output_index": 0, "item": item},
    ]
    done = {**item, "status": "completed"}
    complete: Events = [
        {"type": "response.output_item.done", **number, "output_index": 0, "item": done},
        {"type": "response.completed", **number, "response": {**response, "status": "completed", "output": [done]}},
    ]
    failed = {**response, "status": "failed", "error": {"code": "server_error", "message": "The model is ill."}}
    error: Events = [{"type": "response.failed", **number, "response": failed}]
    return before, {"complete": complete, "error": error}.get(spec.ending, [])


_AROUND = {"chat": _chat, "messages": _messages, "responses": _responses}


class Closing(NamedTuple):
    """A frame of an end that the relay tells: what it says, and whether it is the last of that end."""

    code: str
    last: bool


def closing(api: Api, type_: str | None, data: str) -> Closing | None:
    """What a frame that no upstream sent says; None where it is none of the relay's closing frames."""
    if data == DONE:
        return Closing("", True) if api == "chat" else None
    try:
        event = json.loads(data)
    except ValueError:
        return None
    if not isinstance(event, dict) or "torture" in event:
        return None
    kind = event.get("type")
    if api == "chat":
        if isinstance(event.get("error"), dict):
            return Closing(str(event["error"].get("code")), False)
        choices = event.get("choices") or [{}]
        return Closing("stopped", False) if choices[0].get("finish_reason") == "length" else None
    if api == "messages":
        if kind == "error":
            return Closing(str(event["error"].get("code")), True) if type_ == "error" else None
        if kind in ("message_start", "content_block_stop", "message_delta", "message_stop"):
            return Closing("stopped", kind == "message_stop")
        return None
    if kind == "error":
        return Closing(str(event.get("code")), False)
    if kind == "response.failed":
        return Closing(str(event["response"]["error"]["code"]), True)
    if kind == "response.completed" and event["response"].get("status") == "cancelled":
        return Closing("stopped", True)
    return Closing("stopped", False) if kind == "response.created" else None
