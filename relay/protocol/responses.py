"""OpenAI responses (`/v1/responses`): events typed by their JSON `type`, ended by completed, failed,
incomplete or error; a `[DONE]` may follow. Upstreams without `sequence_number` keep none.
"""

from __future__ import annotations

import orjson

from relay.protocol.dialect import (
    DONE,
    STOPPED,
    JsonObject,
    OpenAIErrors,
    Usage,
    Watch,
    dump_json,
    is_beat,
    parse_count,
    parse_object,
)
from relay.protocol.ends import DONE_LINE, END, ERROR, FAILURE, KEEP_ALIVE, PART, TOKEN
from relay.protocol.outcomes import Cause, StreamFailure, late_status
from relay.protocol.sse import Event
from relay.protocol.upstream_error import UpstreamError, read_object

# Output of every kind: text, arguments of tools, code, audio, images.
_OUTPUT = (".delta", ".partial_image")
# What a delta adds to its item: the list and the part's kind and field, or the item's own field.
_DELTAS: dict[str, tuple[str, str, str, str]] = {
    "response.output_text.delta": ("content", "content_index", "output_text", "text"),
    "response.refusal.delta": ("content", "content_index", "refusal", "refusal"),
    "response.reasoning_text.delta": ("content", "content_index", "reasoning_text", "text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_index", "summary_text", "text"),
    "response.function_call_arguments.delta": ("", "", "", "arguments"),
    "response.custom_tool_call_input.delta": ("", "", "", "input"),
}
_ENDS = frozenset(("response.completed", "response.incomplete", "response.done"))
_FAILURES = frozenset(("response.failed", "response.cancelled", "response.canceled", "response.error"))
_FAILED = ("failed", "cancelled", "canceled")
# In `response.failed` some agents give up at this code, where they would ask again after the error that it tells.
_GIVES_UP = "server_is_overloaded"


class ResponsesWatch(Watch):
    """Follows a responses stream (OpenAI API reference, "Streaming events" of the responses API)."""

    grammar = "responses"

    stateless_deltas = False  # each has a number

    def __init__(self) -> None:
        super().__init__()
        self._over = False
        self._failed = False  # `response.failed` has come
        self._items: dict[int, JsonObject] = {}
        self._unfinished: dict[int, list[tuple[str, int, str]]] = {}  # of each: kind, part, delta

    def see(self, event: Event) -> int:
        """The bits of an event: deltas and items of calls are tokens.

        Raises StreamFailure (upstream_malformed) for data that is neither a JSON object nor an error's text.
        """
        if event.data == DONE:
            return DONE_LINE
        try:
            message = parse_object(event.data)
        except StreamFailure:
            return self.see_other(event)
        kind = message.get("type") or event.type.decode("utf-8", "replace")
        if not isinstance(kind, str):
            kind = ""
        sequence = parse_count(message.get("sequence_number"))
        if sequence is not None and (self.last_sequence is None or sequence > self.last_sequence):
            self.last_sequence = sequence
        adds = _DELTAS.get(kind)
        if adds is not None or kind.endswith(_OUTPUT):
            deltas = self._unfinished.get(parse_count(message.get("output_index")) or 0)
            delta = message.get("delta")
            if deltas is not None and isinstance(delta, str) and adds is not None:
                deltas.append((kind, parse_count(message.get(adds[1])) or 0, delta))
            return TOKEN
        if kind in ("response.output_item.added", "response.output_item.done"):
            item = message.get("item")
            index = parse_count(message.get("output_index"))
            if isinstance(item, dict):
                at = len(self._items) if index is None else index
                self._items[at] = item
                if kind == "response.output_item.added":
                    self._unfinished[at] = []
                    return TOKEN if str(item.get("type")).endswith("_call") else PART
                self._unfinished.pop(at, None)
        response = message.get("response")
        if isinstance(response, dict):
            self.response = response
            if not self.response_id and isinstance(response.get("id"), str):
                self.response_id = response["id"] or None
            usage = response.get("usage")
            if isinstance(usage, dict):
                self.usage = Usage(parse_count(usage.get("input_tokens")), parse_count(usage.get("output_tokens")))
        status = response.get("status") if isinstance(response, dict) else None
        # Of the two ends of a whole answer the status has the last word, but for a relay's own stop.
        failed = (
            status in _FAILED and kind in ("response.done", "response.completed") and message.get("relay") != STOPPED
        )
        if kind in _FAILURES or failed:
            return self._fail(kind, response.get("error") if isinstance(response, dict) else message, status)
        if kind in _ENDS:
            self._over = True
            return END
        if kind.startswith("response."):
            return PART
        if is_beat(event, message):
            return KEEP_ALIVE
        error = read_object(message, named=kind == "error" or event.type == b"error")
        if error is None:
            return 0
        self._over = True
        self.error = error
        self.readable = kind == "error"
        return ERROR

    def _fail(self, kind: str, given: object, status: object) -> int:
        self._over = True
        if self.error is None:
            told = read_object(given, named=True) if given else None
            self.error = told or UpstreamError(f"The response ended as {status or kind}", code=str(status or "")[:100])
        self._failed = self._failed or kind == "response.failed"
        return FAILURE

    def left_out(self, request_id: str) -> list[Event]:
        """`response.failed` after an error without it: there are clients that read no other."""
        if self.error is None or self._failed:
            return []
        self._failed = True
        error, code = self.error, self.error.code or self.error.type or "server_error"
        if code == _GIVES_UP:
            code = "server_error"
        return [_failed(code, error.message, _next(self.last_sequence), self.response, request_id)]

    def stop_events(self, request_id: str) -> list[Event]:
        """`response.completed` with the status `cancelled`, the output as far as it has come, and the next number."""
        # `response.completed`, because the SDKs' helpers raise on any other end; its status says "cancelled".
        events: list[Event] = []
        sequence = 0 if self.last_sequence is None else self.last_sequence + 1
        response = self.response
        if response is None:
            response = _empty(request_id)
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


def _next(sequence: int | None) -> int:
    return 0 if sequence is None else sequence + 1


def _empty(request_id: str) -> JsonObject:
    return {
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


def _failed(code: str, message: str, sequence: int, response: JsonObject | None, request_id: str) -> Event:
    whole = {**(response or _empty(request_id)), "status": "failed", "error": {"code": code, "message": message}}
    return _event("response.failed", sequence, whole)


def _event(kind: str, sequence: int, response: JsonObject, **more: str) -> Event:
    return Event(kind.encode(), dump_json({"type": kind, "sequence_number": sequence, "response": response, **more}))


_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Responses(OpenAIErrors):
    """Spells errors, ends and heartbeats for clients of responses."""

    name = "responses"
    path = "/v1/responses"
    # No `sequence_number`: those are the logged events' own.
    event_heartbeat = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> ResponsesWatch:
        """A watch for one stream; usage stands in its last event, so nothing is hidden."""
        return ResponsesWatch()

    def error_events(
        self,
        code: str,
        message: str,
        sequence: int | None,
        request_id: str,
        *,
        kind: str = "",
        response: JsonObject | None = None,
    ) -> list[Event]:
        """An `error` event and then `response.failed`, which some clients read alone; their numbers go on after
        `sequence`, from 0 where that is None."""
        # Flat and nested: some clients read the one, some the other. sequence_number is required by a
        # client that validates events, so one that never had any gets 0.
        number = _next(sequence)
        error = {
            "type": "error",
            "sequence_number": number,
            "code": code,
            "message": message,
            "param": None,
            "error": {"type": kind or "server_error", "code": code, "message": message, "param": None},
        }
        # After this code agents wait for as long as the message says ("try again in 7 seconds").
        read = "rate_limit_exceeded" if code == Cause.UPSTREAM_REFUSED and late_status(message) == 429 else code
        return [Event(b"error", orjson.dumps(error)), _failed(read, message, number + 1, response, request_id)]

    def asked_for_usage(self, body: JsonObject) -> bool:
        """Always: every responses stream reports usage."""
        return True

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        """Never another body: every responses stream reports usage."""
        return None
