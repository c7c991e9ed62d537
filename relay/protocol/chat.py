"""OpenAI chat completions (`/v1/chat/completions`): unnamed events of JSON chunks, ended by `[DONE]`.

Upstreams differ on where usage stands (a chunk of its own with `choices: []`, or the finish chunk), on
reasoning (`reasoning_content`, `reasoning`, `reasoning_details`), on the role chunk, and on errors: with
or without `event: error`, with or without `choices` and `finish_reason: "error"`, or in `x_groq`. All are accepted.
"""

from __future__ import annotations

import orjson

from relay.protocol import finish_reasons
from relay.protocol.dialect import (
    DONE,
    STOPPED,
    JsonObject,
    OpenAIErrors,
    Usage,
    Watch,
    dump_json,
    is_beat,
    openai_error,
    parse_count,
    parse_object,
)
from relay.protocol.ends import DONE_LINE, ERROR, FAILURE, FINISH, HIDDEN, KEEP_ALIVE, PART, TOKEN, USAGE
from relay.protocol.outcomes import StreamFailure
from relay.protocol.sse import Event
from relay.protocol.upstream_error import UpstreamError, read_object

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

_NONE: set[int] = set()  # for all who have none yet: an empty set holds 216 bytes


class ChatWatch(Watch):
    """Follows a chat stream (OpenAI API reference, "The chat completion chunk object"). `hide_usage` hides the chunk
    of usage that the relay asked for; `choices` is the request's `n`.
    """

    grammar = "chat"

    def __init__(self, hide_usage: bool, choices: int) -> None:
        super().__init__()
        self.hides_usage = hide_usage
        self._model: object = ""  # of the first chunk with one, and when that was made
        self._created: object = 0
        self._begun = False
        self.choices = choices
        self._open: set[int] = set()
        self._finished = _NONE

    def see(self, event: Event) -> int:
        """The bits of a chunk: text in any of its choices' deltas is a token; it is a finish where all choices are.

        Raises StreamFailure (upstream_malformed) for data that is neither a JSON object nor an error's text.
        """
        data = event.data
        if data == DONE:
            return DONE_LINE
        try:
            chunk = parse_object(data)
        except StreamFailure:
            return self.see_other(event)
        choices = chunk.get("choices")
        if not choices or "error" in chunk or event.type:
            if is_beat(event, chunk):
                return KEEP_ALIVE
            error = read_object(chunk, named=event.type == b"error")
            if error is not None:
                self._fail(error, chunk)
                return ERROR
        if not self.response_id and isinstance(chunk.get("id"), str):
            self.response_id = chunk["id"] or None
        if not self._model and chunk.get("model"):
            self._model, self._created = chunk["model"], chunk.get("created", 0)
        usage = counted = chunk.get("usage")
        if "x_groq" in chunk and isinstance(own := chunk["x_groq"], dict):
            if own.get("error"):
                self.error = read_object(own, named=True)
                self.readable = False
                return ERROR
            counted = counted or own.get("usage")
        if isinstance(counted, dict):
            self.usage = Usage(parse_count(counted.get("prompt_tokens")), parse_count(counted.get("completion_tokens")))
        if not isinstance(choices, list) or not choices:
            if not isinstance(usage, dict) or choices is None:
                return 0
            # An upstream that finishes choices does not count before all of them are.
            return (HIDDEN if self.hides_usage else 0) | (0 if self._finished else USAGE)
        self._begun = True
        bits = PART
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = parse_count(choice.get("index")) or 0
            if "error" in choice and (error := read_object({"error": choice["error"]})) is not None:
                self.error = error
                self.readable = False
                return ERROR
            reason = choice.get("finish_reason")
            judged = finish_reasons.UNFINISHED if reason is None else finish_reasons.judge(reason)
            if judged == finish_reasons.UNFINISHED:
                self._open.add(index)
            else:
                self._finished = self._finished or set()
                self._finished.add(index)
                if judged == finish_reasons.FAILED:
                    told = finish_reasons.text_of(reason)
                    self.error = UpstreamError(f"The answer ended with finish_reason: {told}", code=told)
                    self.readable = True
                    bits |= FAILURE
            delta = choice.get("delta")
            if isinstance(delta, dict):
                for field in _TOKEN_FIELDS:
                    if delta.get(field):
                        bits |= TOKEN
                        break
            elif choice.get("text"):
                bits |= TOKEN
        if self._finished and self._open <= self._finished and len(self._finished) >= self.choices:
            bits |= FINISH
        return bits

    def _fail(self, error: UpstreamError, chunk: JsonObject) -> None:
        self.error = error
        given = chunk.get("error")
        self.readable = isinstance(given, dict) and bool(given.get("message")) and isinstance(given["message"], str)

    def stop_events(self, request_id: str) -> list[Event]:
        """A last chunk with `finish_reason: "length"` for each unfinished choice, then `[DONE]`."""
        # "stop" would say that the model had come to its end; clients take "length" for an answer that is cut short.
        unfinished = sorted(self._open - self._finished) or ([] if self._finished else [0])
        if self.error is not None:
            unfinished = []
        events = [Event(b"", DONE)]
        if unfinished:
            # A helper raises on a choice that never had a role.
            begun: JsonObject = {} if self._begun else {"role": "assistant", "content": ""}
            chunk = {
                "id": self.response_id or f"chatcmpl-{request_id}",
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": self._model,
                "choices": [{"index": i, "delta": begun, "finish_reason": "length"} for i in unfinished],
                "relay": STOPPED,
            }
            events.insert(0, Event(b"", dump_json(chunk)))
        return events


class Chat(OpenAIErrors):
    """Spells errors, ends and heartbeats for clients of chat completions."""

    name = "chat"
    path = "/v1/chat/completions"
    # A chunk without choices, such as the one that tells the usage; its type tells it from those that are the answer's.
    event_heartbeat = (
        b'event: keepalive\ndata: {"id":"","object":"chat.completion.chunk","created":0,"model":"","choices":[]}\n\n'
    )

    def watch(self, *, hide_usage: bool = False, choices: int = 1) -> ChatWatch:
        """A watch for one stream."""
        return ChatWatch(hide_usage, choices)

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
        """A chunk with `error` and without `choices`, then `[DONE]`; the request's id has no place in it."""
        # No `choices` beside the error: one client takes such a chunk for a normal end.
        error = openai_error(message, kind or "server_error", code)
        return [Event(b"", orjson.dumps({"error": error})), Event(b"", DONE)]

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
