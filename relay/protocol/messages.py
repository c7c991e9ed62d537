"""Anthropic messages (`/v1/messages`): events named by an `event:` line, ended by `message_stop` or `error`."""

from __future__ import annotations

import orjson

from relay.protocol.dialect import (
    DONE,
    FAILED,
    KEEP_ALIVE,
    STOPPED,
    TERMINAL,
    TOKEN,
    JsonObject,
    Usage,
    dump_json,
    error_text,
    parse_count,
    parse_object,
)
from relay.protocol.errors import ApiError
from relay.protocol.sse import Event

# Blocks whose start alone is output: the model has decided to call a tool.
_TOOL_BLOCKS = ("tool_use", "server_tool_use", "mcp_tool_use")

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessagesWatch:
    """Follows a messages stream (Anthropic API, "Streaming messages")."""

    stateless_deltas = True

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.response_id: str | None = None
        self.last_sequence: int | None = None
        self.error: str | None = None
        self._open: set[int] = set()
        self._started = False
        self._closing = False

    def see(self, event: Event) -> int:
        """The bits of an event: deltas and starts of tool calls are tokens; `message_stop` and `error` are terminal.

        Raises StreamFailure (upstream_malformed) for data that is no JSON object.
        """
        if event.data == DONE:
            return 0
        message = parse_object(event.data)
        kind = message.get("type") or event.type.decode("utf-8", "replace")
        if kind == "content_block_delta":
            return TOKEN
        if kind == "content_block_start":
            block = message.get("content_block")
            self._open.add(parse_count(message.get("index")) or 0)
            return TOKEN if isinstance(block, dict) and block.get("type") in _TOOL_BLOCKS else 0
        if kind == "message_stop":
            return TERMINAL
        if kind == "ping":
            return KEEP_ALIVE
        if kind == "error" or event.type == b"error" or (not kind and "error" in message):
            self.error = error_text(message.get("error") or message)
            return TERMINAL | FAILED
        if kind == "content_block_stop":
            self._open.discard(parse_count(message.get("index")) or 0)
        elif kind == "message_start":
            self._started = True
            start = message.get("message")
            if isinstance(start, dict):
                self.response_id = start.get("id") if isinstance(start.get("id"), str) else None
                self._count(start.get("usage"))
        elif kind == "message_delta":
            self._closing = True
            self._count(message.get("usage"))
        return 0

    def _count(self, usage: object) -> None:
        """Input stands in message_start, output accumulates in message_delta; either may stand in both."""
        if isinstance(usage, dict):
            seen = self.usage or Usage()
            given = parse_count(usage.get("input_tokens"))
            made = parse_count(usage.get("output_tokens"))
            self.usage = Usage(seen.input if given is None else given, seen.output if made is None else made)

    def ended_at_eof(self) -> bool:
        """Never: only `message_stop` completes an answer."""
        return False

    def stop_events(self, request_id: str) -> list[Event]:
        """Ends the open content blocks, then `message_delta` with `stop_reason: "end_turn"`, then `message_stop`."""
        usage = self.usage or Usage()
        made = {"output_tokens": usage.output or 0}
        messages: list[JsonObject] = []
        if not self._started:
            empty: JsonObject = {
                "id": f"msg_{request_id}",
                "type": "message",
                "role": "assistant",
                "model": "",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, **made},
            }
            messages.append({"type": "message_start", "message": empty})
        messages += ({"type": "content_block_stop", "index": i} for i in sorted(self._open))
        if not self._closing:
            delta = {"stop_reason": "end_turn", "stop_sequence": None}
            messages.append({"type": "message_delta", "delta": delta, "usage": made, "relay": STOPPED})
            messages.append({"type": "message_stop"})
        else:
            messages.append({"type": "message_stop", "relay": STOPPED})
        return [Event(m["type"].encode(), dump_json(m)) for m in messages]


class Messages:
    """Spells errors, ends and heartbeats for clients of messages."""

    name = "messages"
    path = "/v1/messages"
    # Every messages client accepts a ping without an id, also before the first event.
    heartbeat = b'event: ping\ndata: {"type":"ping"}\n\n'

    def watch(self, *, hide_usage: bool = False) -> MessagesWatch:
        """A watch for one stream; usage stands in events that are always forwarded, so nothing is hidden."""
        return MessagesWatch()

    def error_events(self, code: str, message: str, sequence: int | None, request_id: str) -> list[Event]:
        """One `error` event of type `api_error`, with `code` beside it; `sequence` has no place in it."""
        error = {"type": "api_error", "message": message, "code": code}
        return [
            Event(b"error", orjson.dumps({"type": "error", "error": error, "request_id": request_id})),
        ]

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        """The body of Anthropic's errors, its type by the status (Anthropic API, "Errors")."""
        kind = _ERROR_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return orjson.dumps(
            {
                "type": "error",
                "error": {"type": kind, "message": error.message, "code": error.code},
                "request_id": request_id,
            }
        )

    def asked_for_usage(self, body: JsonObject) -> bool:
        """Always: every messages stream reports usage."""
        return True

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        """Never another body: every messages stream reports usage."""
        return None
