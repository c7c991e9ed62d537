"""OpenAI responses (`/v1/responses`): events typed by their JSON `type`, ended by completed, failed,
incomplete or error; a `[DONE]` may follow. Upstreams without `sequence_number` keep none.
"""

from __future__ import annotations

import orjson

from relay.protocol.dialect import (
    DONE,
    DONE_MAY_FOLLOW,
    FAILED,
    STOPPED,
    TERMINAL,
    TOKEN,
    JsonObject,
    Usage,
    dump_json,
    error_text,
    openai_error_body,
    parse_count,
    parse_object,
)
from relay.protocol.errors import ApiError
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
# What a delta adds to its item: the list and the part's kind and field, or the item's own field.
_DELTAS: dict[str, tuple[str, str, str, str]] = {
    "response.output_text.delta": ("content", "content_index", "output_text", "text"),
    "response.refusal.delta": ("content", "content_index", "refusal", "refusal"),
    "response.reasoning_text.delta": ("content", "content_index", "reasoning_text", "text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_index", "summary_text", "text"),
    "response.function_call_arguments.delta": ("", "", "", "arguments"),
    "response.custom_tool_call_input.delta": ("", "", "", "input"),
}
_CALL_ITEMS = ("function_call", "custom_tool_call")


class ResponsesWatch:
    """Follows a responses stream (OpenAI API reference, "Streaming events" of the responses API)."""

    stateless_deltas = False  # each has a number

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.response_id: str | None = None
        self.last_sequence: int | None = None
        self.error: str | None = None
        self._over = False
        self._response: JsonObject | None = None
        self._items: dict[int, JsonObject] = {}
        self._unfinished: dict[int, list[tuple[str, int, str]]] = {}  # of each: kind, part, delta

    def see(self, event: Event) -> int:
        """The bits of an event: deltas and items of calls are tokens; the response's end and `error` are terminal.

        Raises StreamFailure (upstream_malformed) for data that is no JSON object.
        """
        if event.data == DONE:
            return TERMINAL
        message = parse_object(event.data)
        kind = message.get("type") or event.type.decode("utf-8", "replace")
        if not isinstance(kind, str):
            kind = ""
        sequence = parse_count(message.get("sequence_number"))
        if sequence is not None:
            self.last_sequence = sequence
        if kind in _TOKEN_TYPES:
            deltas = self._unfinished.get(parse_count(message.get("output_index")) or 0)
            delta = message.get("delta")
            if deltas is not None and isinstance(delta, str):
                deltas.append((kind, parse_count(message.get(_DELTAS[kind][1])) or 0, delta))
            return TOKEN
        if kind in ("response.output_item.added", "response.output_item.done"):
            item = message.get("item")
            index = parse_count(message.get("output_index"))
            if isinstance(item, dict):
                at = len(self._items) if index is None else index
                self._items[at] = item
                if kind == "response.output_item.added":
                    self._unfinished[at] = []
                    return TOKEN if item.get("type") in _CALL_ITEMS else 0
                self._unfinished.pop(at, None)
        response = message.get("response")
        if kind == "error" or (not kind and "error" in message):
            self.error = error_text(message.get("error") or message)
            self._over = True
            return TERMINAL | DONE_MAY_FOLLOW | FAILED
        if isinstance(response, dict):
            self._response = response
            if self.response_id is None and isinstance(response.get("id"), str):
                self.response_id = response["id"]
            usage = response.get("usage")
            if isinstance(usage, dict):
                self.usage = Usage(parse_count(usage.get("input_tokens")), parse_count(usage.get("output_tokens")))
        if kind in ("response.completed", "response.incomplete"):
            self._over = True
            return TERMINAL | DONE_MAY_FOLLOW
        if kind == "response.failed":
            self.error = error_text(response.get("error") if isinstance(response, dict) else None)
            self._over = True
            return TERMINAL | DONE_MAY_FOLLOW | FAILED
        return 0

    def ended_at_eof(self) -> bool:
        """True after a terminal event."""
        return self._over

    def stop_events(self, request_id: str) -> list[Event]:
        """`response.completed` with the status `cancelled`, the output as far as it has come, and the next number."""
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
            output = [self._so_far(index) for index in sorted(self._items)]
            whole = {**response, "status": "cancelled", "output": output}
            whole["usage"] = response.get("usage") or _NO_USAGE
            events.append(_event("response.completed", sequence, whole, relay=STOPPED))
        return events

    def _so_far(self, index: int) -> JsonObject:
        """An output item as far as it has come: the SDKs' helpers raise on one that is missing from the end."""
        item = self._items[index]
        if index not in self._unfinished:
            return item
        item = {**item, **({"status": "incomplete"} if "status" in item else {})}
        lists: dict[str, dict[int, JsonObject]] = {}
        texts: dict[str, str] = {}
        for kind, at, delta in self._unfinished[index]:
            listed, _, part, field = _DELTAS[kind]
            if not listed:
                texts[field] = texts.get(field, "") + delta
                continue
            parts = lists.setdefault(listed, {})
            found = parts.setdefault(at, {"type": part, field: ""})
            if part == "output_text":
                found.setdefault("annotations", [])
            found[field] = found.get(field, "") + delta
        item.update(texts)
        for listed, parts in lists.items():
            item[listed] = [parts[at] for at in sorted(parts)]
        return item


def _event(kind: str, sequence: int, response: JsonObject, **more: str) -> Event:
    return Event(kind.encode(), dump_json({"type": kind, "sequence_number": sequence, "response": response, **more}))


_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Responses:
    """Spells errors, ends and heartbeats for clients of responses."""

    name = "responses"
    path = "/v1/responses"
    heartbeat = b": hb\n"

    def watch(self, *, hide_usage: bool = False) -> ResponsesWatch:
        """A watch for one stream; usage stands in its last event, so nothing is hidden."""
        return ResponsesWatch()

    def error_events(self, code: str, message: str, sequence: int | None, request_id: str) -> list[Event]:
        """One `error` event, its `sequence_number` the one after `sequence`, 0 where that is None."""
        # Flat and nested: some clients read the one, some the other. sequence_number is required by a
        # client that validates events, so one that never had any gets 0.
        error = {
            "type": "error",
            "sequence_number": 0 if sequence is None else sequence + 1,
            "code": code,
            "message": message,
            "param": None,
            "error": {"type": "server_error", "code": code, "message": message, "param": None},
        }
        return [Event(b"error", orjson.dumps(error))]

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        """The body of OpenAI's errors (OpenAI API reference, "Error codes")."""
        return openai_error_body(error)

    def asked_for_usage(self, body: JsonObject) -> bool:
        """Always: every responses stream reports usage."""
        return True

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        """Never another body: every responses stream reports usage."""
        return None
