"""OpenAI chat completions (`/v1/chat/completions`): unnamed events of JSON chunks, ended by `[DONE]`.

Upstreams differ on where usage stands (a chunk of its own with `choices: []`, or the finish chunk), on
reasoning (`reasoning_content`, `reasoning`, `reasoning_details`), on the role chunk, and on errors: with
or without `event: error`, with or without `choices` and `finish_reason: "error"`. All are accepted.
"""

from __future__ import annotations

import orjson

from relay.protocol.dialect import (
    DONE,
    DONE_MAY_FOLLOW,
    FAILED,
    HIDDEN,
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

_TOKEN_FIELDS = (
    "content",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "refusal",
    "tool_calls",
    "function_call",
    "audio",
)


class ChatWatch:
    """Follows a chat stream (OpenAI API reference, "The chat completion chunk object"). `hide_usage` hides the chunk
    of usage that the relay asked for.
    """

    stateless_deltas = True

    def __init__(self, hide_usage: bool) -> None:
        self.usage: Usage | None = None
        self.response_id: str | None = None
        self.last_sequence: int | None = None
        self.error: str | None = None
        self._hide_usage = hide_usage
        self._last: JsonObject = {}
        self._open: set[int] = set()
        self._finished: set[int] = set()

    def see(self, event: Event) -> int:
        """The bits of a chunk: text in any of its choices' deltas is a token, `[DONE]` and an error are terminal.

        Raises StreamFailure (upstream_malformed) for data that is no JSON object.
        """
        data = event.data
        if data == DONE:
            return TERMINAL
        chunk = parse_object(data)
        if ("error" in chunk and chunk["error"] is not None) or event.type == b"error":
            self.error = error_text(chunk.get("error") or chunk)
            return TERMINAL | DONE_MAY_FOLLOW | FAILED
        self._last = chunk
        if self.response_id is None and isinstance(chunk.get("id"), str):
            self.response_id = chunk["id"]
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = Usage(parse_count(usage.get("prompt_tokens")), parse_count(usage.get("completion_tokens")))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return HIDDEN if self._hide_usage and isinstance(usage, dict) and choices == [] else 0
        bits = 0
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = parse_count(choice.get("index")) or 0
            reason = choice.get("finish_reason")
            if reason is not None:
                self._finished.add(index)
                if reason == "error":
                    self.error = "finish_reason: error"
                    bits |= TERMINAL | DONE_MAY_FOLLOW | FAILED
            else:
                self._open.add(index)
            delta = choice.get("delta")
            if isinstance(delta, dict):
                for field in _TOKEN_FIELDS:
                    if delta.get(field):
                        bits |= TOKEN
                        break
            elif choice.get("text"):
                bits |= TOKEN
        return bits

    def ended_at_eof(self) -> bool:
        """A finish reason for every choice is "probably complete": upstreams without `[DONE]` end so."""
        return self.error is not None or (bool(self._finished) and self._open <= self._finished)

    def stop_events(self, request_id: str) -> list[Event]:
        """A last chunk with `finish_reason: "stop"` for each unfinished choice, then `[DONE]`."""
        unfinished = sorted(self._open - self._finished) or ([] if self._finished else [0])
        if self.error is not None:
            unfinished = []
        events = [Event(b"", DONE)]
        if unfinished:
            # A helper raises on a choice that never had a role.
            begun: JsonObject = {} if self._last.get("choices") else {"role": "assistant", "content": ""}
            chunk = {
                "id": self.response_id or f"chatcmpl-{request_id}",
                "object": "chat.completion.chunk",
                "created": self._last.get("created", 0),
                "model": self._last.get("model", ""),
                "choices": [{"index": i, "delta": begun, "finish_reason": "stop"} for i in unfinished],
                "relay": STOPPED,
            }
            events.insert(0, Event(b"", dump_json(chunk)))
        return events


class Chat:
    """Spells errors, ends and heartbeats for clients of chat completions."""

    name = "chat"
    path = "/v1/chat/completions"
    # A comment line WITHOUT a blank line: openai-python dispatches an empty event on a blank line once it
    # has seen an id, and dies of it.
    heartbeat = b": hb\n"

    def watch(self, *, hide_usage: bool = False) -> ChatWatch:
        """A watch for one stream."""
        return ChatWatch(hide_usage)

    def error_events(self, code: str, message: str, sequence: int | None, request_id: str) -> list[Event]:
        """A chunk with `error` and without `choices`, then `[DONE]`; the request's id has no place in it."""
        # No `choices` beside the error: one client takes such a chunk for a normal end.
        error = {"message": message, "type": "server_error", "param": None, "code": code}
        return [Event(b"", orjson.dumps({"error": error})), Event(b"", DONE)]

    def error_body(self, error: ApiError, request_id: str) -> bytes:
        """The body of OpenAI's errors (OpenAI API reference, "Error codes")."""
        return openai_error_body(error)

    def asked_for_usage(self, body: JsonObject) -> bool:
        """True where `stream_options.include_usage` is set."""
        options = body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))

    def ask_for_usage(self, body: JsonObject) -> JsonObject | None:
        """The body with `stream_options.include_usage`; None where it is set already."""
        if self.asked_for_usage(body):
            return None
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        return {**body, "stream_options": {**options, "include_usage": True}}
