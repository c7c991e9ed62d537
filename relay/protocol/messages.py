"""Anthropic messages (`/v1/messages`): events named by an `event:` line, ended by `message_stop` or `error`."""

from __future__ import annotations

import orjson

from relay.protocol import finish_reasons
from relay.protocol.dialect import (
    STOPPED,
    JsonObject,
    Usage,
    Watch,
    dump_json,
    is_beat,
    parse_count,
    parse_object,
)
from relay.protocol.ends import END, ERROR, FAILURE, FINISH, KEEP_ALIVE, PART, TOKEN
from relay.protocol.errors import ApiError
from relay.protocol.outcomes import StreamFailure
from relay.protocol.sse import Event
from relay.protocol.upstream_error import UpstreamError, read_object

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
    529: "overloaded_error",
}


class MessagesWatch(Watch):
    """Follows a messages stream (Anthropic API, "Streaming messages")."""

    grammar = "messages"

    def __init__(self) -> None:
        super().__init__()
        self._open: set[int] = set()
        self._started = False
        self._closing = False
        self._over = False

    def see(self, event: Event) -> int:
        """The bits of an event: deltas and starts of tool calls are tokens; a stop reason ends what has no open block.

        Raises StreamFailure (upstream_malformed) for data that is neither a JSON object nor an error's text.
        """
        try:
            message = parse_object(event.data)
        except StreamFailure:
            return self.see_other(event)
        kind = message.get("type") or event.type.decode("utf-8", "replace")
        if kind == "content_block_delta":
            return TOKEN
        if kind == "content_block_start":
            block = message.get("content_block")
            self._open.add(parse_count(message.get("index")) or 0)
            return TOKEN if isinstance(block, dict) and block.get("type") in _TOOL_BLOCKS else PART
        if kind == "message_stop":
            self._over = True
            return END
        if is_beat(event, message):
            return KEEP_ALIVE
        if kind == "content_block_stop":
            self._open.discard(parse_count(message.get("index")) or 0)
            return PART
        if kind == "message_start":
            return self._start(message)
        if kind == "message_delta":
            self._count(message.get("usage"))
            return self._close(message.get("delta"))
        error = read_object(message, named=kind == "error" or event.type == b"error")
        if error is None:
            return 0
        self.error = error
        given = message.get("error")
        words = given.get("message") if isinstance(given, dict) else None
        self.readable = event.type == b"error" and kind == "error" and isinstance(words, str) and bool(words)
        return ERROR

    def _start(self, message: JsonObject) -> int:
        self._started = True
        start = message.get("message")
        if isinstance(start, dict):
            if not self.response_id and isinstance(start.get("id"), str):
                self.response_id = start["id"] or None
            self._count(start.get("usage"))
        return PART

    def _close(self, delta: object) -> int:
        """A delta of the message: with a reason to stop it is the end of its content."""
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        judged = finish_reasons.judge(reason)
        if judged == finish_reasons.UNFINISHED:
            return PART
        self._closing = True
        if judged == finish_reasons.FAILED:
            told = finish_reasons.text_of(reason)
            self.error = UpstreamError(f"The answer ended with stop_reason: {told}", code=told)
            self.readable = True
            return FAILURE
        return PART if self._open else FINISH

    def _count(self, usage: object) -> None:
        """Input stands in message_start, output accumulates in message_delta; either may stand in both."""
        if isinstance(usage, dict):
            seen = self.usage or Usage()
            given = parse_count(usage.get("input_tokens"))
            made = parse_count(usage.get("output_tokens"))
            self.usage = Usage(seen.input if given is None else given, seen.output if made is None else made)

    def left_out(self, request_id: str) -> list[Event]:
        """`message_stop`, where all but it has come: the SDKs' helpers wait for it."""
        if self.error is not None or self._over:
            return []
        return [Event(b"message_stop", b'{"type":"message_stop"}')]

    def stop_events(self, request_id: str) -> list[Event]:
        """Ends the open content blocks, then `message_delta` with `stop_reason: "max_tokens"`, then `message_stop`."""
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
            # "end_turn" would say that the answer is whole.
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            messages.append({"type": "message_delta", "delta": delta, "usage": made, "relay": STOPPED})
            messages.append({"type": "message_stop"})
        else:
            messages.append({"type": "message_stop", "relay": STOPPED})
        return [Event(m["type"].encode(), dump_json(m)) for m in messages]


def _error_type(status: int) -> str:
    return _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


class Messages:
    """Spells errors, ends and heartbeats for clients of messages."""

    name = "messages"
    path = "/v1/messages"
    # Every messages client accepts a ping without an id, also before the first event.
    event_heartbeat = b'event: ping\ndata: {"type":"ping"}\n\n'

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> MessagesWatch:
        """A watch for one stream; usage stands in events that are always forwarded, so nothing is hidden."""
        return MessagesWatch()

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
        """One `error` event, its type `api_error` where the upstream told none, with `code` beside it."""
        error = {"type": kind or "api_error", "message": message, "code": code}
        return [
            Event(b"error", orjson.dumps({"type": "error", "error": error, "request_id": request_id})),
        ]

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        """The body of Anthropic's errors, its type by the status (Anthropic API, "Errors")."""
        return orjson.dumps(
            {
                "type": "error",
                "error": {"type": _error_type(error.status), "message": error.message, "code": error.code},
                "request_id": request_id,
            }
        )

    def upstream_error_body(self, error: UpstreamError, status: int, request_id: str) -> bytes:
        """The body of Anthropic's errors, its type the upstream's own or by the status."""
        given = {k: v for k, v in error.given.items() if k not in ("error", "type")}
        told = {**given, "type": error.type or _error_type(status), "message": error.message}
        return dump_json({"type": "error", "error": told, "request_id": request_id})

    def asked_for_usage(self, body: JsonObject) -> bool:
        """Always: every messages stream reports usage."""
        return True

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        """Never another body: every messages stream reports usage."""
        return None
