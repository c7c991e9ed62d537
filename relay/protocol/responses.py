"""OpenAI responses (`/v1/responses`): events typed by their JSON `type`, ended by completed, failed,
incomplete or error; a `[DONE]` may follow. Upstreams without `sequence_number` keep none.
"""

from __future__ import annotations

import orjson

from relay.protocol.dialect import (
    DONE,
    FAILED,
    LINGER,
    TERMINAL,
    TOKEN,
    JsonObject,
    Usage,
    count,
    dump,
    error_text,
    openai_error_body,
    parse_object,
)
from relay.protocol.errors import ApiError
from relay.protocol.lifecycle import Outcome
from relay.protocol.sse import Event

_TOKEN_TYPES = frozenset(
    (
        "response.output_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.refusal.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
    )
)
_CALL_ITEMS = ("function_call", "custom_tool_call")


class ResponsesWatch:
    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.response_id: str | None = None
        self.last_sequence: int | None = None
        self.error: str | None = None
        self._over = False
        self._response: JsonObject | None = None
        self._items: list[JsonObject] = []

    def see(self, event: Event) -> int:
        if event.data == DONE:
            return TERMINAL
        message = parse_object(event.data)
        kind = message.get("type") or event.type.decode("utf-8", "replace")
        if not isinstance(kind, str):
            kind = ""
        sequence = count(message.get("sequence_number"))
        if sequence is not None:
            self.last_sequence = sequence
        if kind in _TOKEN_TYPES:
            return TOKEN
        if kind == "response.output_item.added":
            item = message.get("item")
            return TOKEN if isinstance(item, dict) and item.get("type") in _CALL_ITEMS else 0
        if kind == "response.output_item.done" and isinstance(message.get("item"), dict):
            self._items.append(message["item"])
        response = message.get("response")
        if kind == "error" or (not kind and "error" in message):
            self.error = error_text(message.get("error") or message)
            self._over = True
            return TERMINAL | LINGER | FAILED
        if isinstance(response, dict):
            self._response = response
            if self.response_id is None and isinstance(response.get("id"), str):
                self.response_id = response["id"]
            usage = response.get("usage")
            if isinstance(usage, dict):
                self.usage = Usage(count(usage.get("input_tokens")), count(usage.get("output_tokens")))
        if kind in ("response.completed", "response.incomplete"):
            self._over = True
            return TERMINAL | LINGER
        if kind == "response.failed":
            self.error = error_text(response.get("error") if isinstance(response, dict) else None)
            self._over = True
            return TERMINAL | LINGER | FAILED
        return 0

    def ended_at_eof(self) -> bool:
        return self._over

    def stop_events(self, request_id: str) -> list[Event]:
        # `response.completed`, because the SDKs' helpers raise on any other end; its status says "cancelled".
        events: list[Event] = []
        sequence = 0 if self.last_sequence is None else self.last_sequence + 1
        response = self._response
        if response is None:
            response = {
                "id": f"resp_{request_id}",
                "object": "response",
                "created_at": 0,
                "status": "in_progress",
                "model": "",
                "output": [],
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
            }
            events.append(_event("response.created", sequence, response))
            sequence += 1
        if not self._over:
            whole = {**response, "status": "cancelled", "output": self._items}
            whole["usage"] = response.get("usage") or _NO_USAGE
            events.append(_event("response.completed", sequence, whole))
        return events


def _event(kind: str, sequence: int, response: JsonObject) -> Event:
    return Event(kind.encode(), dump({"type": kind, "sequence_number": sequence, "response": response}))


_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Responses:
    name = "responses"
    path = "/v1/responses"
    heartbeat = b": hb\n"

    def watch(self, *, hide_usage: bool = False) -> ResponsesWatch:
        return ResponsesWatch()

    def error_events(self, cause: Outcome, message: str, sequence: int | None, request_id: str) -> list[Event]:
        # Flat and nested: some clients read the one, some the other. sequence_number is required by a
        # client that validates events, so one that never had any gets 0.
        error = {
            "type": "error",
            "sequence_number": 0 if sequence is None else sequence + 1,
            "code": cause.value,
            "message": message,
            "param": None,
            "error": {"type": "server_error", "code": cause.value, "message": message, "param": None},
        }
        return [Event(b"error", orjson.dumps(error))]

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        return openai_error_body(error)

    def asked_for_usage(self, body: JsonObject) -> bool:
        return True

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        return None
