"""The event streams of the three APIs, as an upstream sends them: every test that speaks one builds it from these.

The bodies are complete, because the SDKs' own helpers validate them. `event` writes a body as it goes over the wire;
`answer` is a whole answer of given words. How gateways differ from this is in `tests/sdk`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Api = Literal["chat", "messages", "responses"]
Body = dict[str, Any]

APIS: tuple[Api, ...] = ("chat", "messages", "responses")
PATHS: dict[str, str] = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
DONE = "data: [DONE]\n\n"


def data(value: object, kind: str = "") -> str:
    """An event of this value: text as it is, anything else as JSON with its characters raw."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return (f"event: {kind}\n" if kind else "") + f"data: {text}\n\n"


def event(body: Body) -> str:
    """The event of a body, with an `event:` line where the API has types."""
    return data(body, str(body.get("type", "")))


def credential(api: str, token: str) -> dict[str, str]:
    """The headers in which a client of the API shows its key."""
    if api == "messages":
        return {"x-api-key": token, "anthropic-version": "2023-06-01"}
    return {"authorization": f"Bearer {token}"}


# -- chat completions -----------------------------------------------------------------------------------------


def chunk(delta: Body | None, finish: str | None = None, **more: Any) -> Body:
    """A chunk with one choice; with none where there is no delta."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1760000000, "model": "gpt-x"}
    return {**base, "system_fingerprint": "fp_1", "choices": choices, **more}


def chat(delta: Body | None, finish: str | None = None, **more: Any) -> str:
    """A chunk as an event."""
    return event(chunk(delta, finish, **more))


def tool_delta(index: int, arguments: str, **start: str) -> Body:
    """A part of a tool call; its first part has `id` and `name`."""
    name = {"name": start["name"]} if start else {}
    call = {"index": index, "function": {**name, "arguments": arguments}}
    if start:
        call |= {"id": start["id"], "type": "function"}
    return chunk({"tool_calls": [call]})


def chat_usage(prompt: int, completion: int, **more: Any) -> Body:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return chunk(None, usage={**usage, **more})


# -- messages -------------------------------------------------------------------------------------------------


def typed(kind: str, **fields: Any) -> Body:
    return {"type": kind, **fields}


def message_start(usage: Body, **more: Any) -> Body:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    stop = {"stop_reason": None, "stop_sequence": None}
    return typed("message_start", message={**message, **stop, "usage": usage, **more})


def block_start(index: int, block: Body) -> Body:
    return typed("content_block_start", index=index, content_block=block)


def block_delta(index: int, delta: Body) -> Body:
    return typed("content_block_delta", index=index, delta=delta)


def block(index: int, start: Body, deltas: Iterable[Body]) -> tuple[Body, ...]:
    return (
        block_start(index, start),
        *(block_delta(index, delta) for delta in deltas),
        typed("content_block_stop", index=index),
    )


def text_block(index: int, words: Iterable[str]) -> tuple[Body, ...]:
    return block(index, {"type": "text", "text": ""}, ({"type": "text_delta", "text": word} for word in words))


def message_end(reason: str, usage: Body) -> tuple[Body, Body]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return typed("message_delta", delta=delta, usage=usage), typed("message_stop")


# -- responses ------------------------------------------------------------------------------------------------


def response(status: str, output: Sequence[Body] = (), **more: Any) -> Body:
    base: Body = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1760000000,
        "model": "gpt-x",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }
    return {**base, "status": status, "output": list(output), "usage": None, **more}


def response_start() -> tuple[Body, Body]:
    begun = response("in_progress")
    return typed("response.created", response=begun), typed("response.in_progress", response=begun)


def response_end(status: str, items: Iterable[Sequence[Body]], usage: Body, **more: Any) -> Body:
    output = [bodies[-1]["item"] for bodies in items]
    return typed(f"response.{status}", response=response(status, output, usage=usage, **more))


def item(index: int, started: Body, done: Body, *between: Body) -> tuple[Body, ...]:
    """An output item, from its begin to its end."""
    return (
        typed("response.output_item.added", output_index=index, item=started),
        *({**body, "output_index": index, "item_id": done["id"]} for body in between),
        typed("response.output_item.done", output_index=index, item=done),
    )


def text_item(index: int, words: Sequence[str], **more: Any) -> tuple[Body, ...]:
    """A message of one text; `more` are fields of each delta."""
    text = "".join(words)
    empty: Body = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant"}
    part = {**empty, "text": text}
    at: Body = {"content_index": 0, "logprobs": []}
    return item(
        index,
        {**message, "status": "in_progress", "content": []},
        {**message, "status": "completed", "content": [part]},
        typed("response.content_part.added", content_index=0, part=empty),
        *(typed("response.output_text.delta", delta=word, **more, **at) for word in words),
        typed("response.output_text.done", text=text, **at),
        typed("response.content_part.done", content_index=0, part=part),
    )


def call_item(index: int, parts: Sequence[str], name: str = "get_weather") -> tuple[Body, ...]:
    """A function call whose arguments come in these parts."""
    call = {"id": "fc_1", "type": "function_call", "call_id": "call_a", "name": name}
    arguments = "".join(parts)
    return item(
        index,
        {**call, "arguments": "", "status": "in_progress"},
        {**call, "arguments": arguments, "status": "completed"},
        *(typed("response.function_call_arguments.delta", delta=part) for part in parts),
        typed("response.function_call_arguments.done", name=name, arguments=arguments),
    )


def numbered(bodies: Iterable[Body], first: int = 0) -> tuple[Body, ...]:
    """The bodies with the sequence numbers that the API gives them."""
    return tuple({**body, "sequence_number": number} for number, body in enumerate(bodies, first))


# -- whole answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A whole answer as events: what precedes its words, an event for each word, and what follows them."""

    api: Api
    before: tuple[str, ...]
    words: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def path(self) -> str:
        return PATHS[self.api]

    @property
    def token(self) -> str:
        """The first word's event."""
        return self.words[0]

    @property
    def rest(self) -> tuple[str, ...]:
        """All that follows the first word."""
        return self.words[1:] + self.after

    @property
    def events(self) -> tuple[str, ...]:
        return self.before + self.words + self.after


def answer(api: Api, words: Sequence[str], prompt_tokens: int = 7) -> Answer:
    """An answer of these words, with usage: a token for each word."""
    match api:
        case "chat":
            deltas = [chunk({"content": word}) for word in words]
            return _chat(deltas, (prompt_tokens, len(words)))
        case "messages":
            start, *deltas, _ = text_block(0, words)
            return _messages([start], deltas, (prompt_tokens, len(words)))
        case "responses":
            text = text_item(0, words)
            return _responses(text[:2], text[2:-3], text[-3:], (prompt_tokens, len(words)))


def _events(*bodies: Body) -> tuple[str, ...]:
    return tuple(event(body) for body in bodies)


def _chat(deltas: Sequence[Body], usage: tuple[int, int]) -> Answer:
    role = chunk({"role": "assistant", "content": ""})
    return Answer("chat", _events(role), _events(*deltas), (*_events(chunk({}, "stop"), chat_usage(*usage)), DONE))


def _messages(before: Sequence[Body], deltas: Sequence[Body], usage: tuple[int, int]) -> Answer:
    start = message_start({"input_tokens": usage[0], "output_tokens": 1})
    end = (typed("content_block_stop", index=0), *message_end("end_turn", {"output_tokens": usage[1]}))
    return Answer("messages", _events(start, *before), _events(*deltas), _events(*end))


def _responses(before: Sequence[Body], deltas: Sequence[Body], after: Sequence[Body], usage: tuple[int, int]) -> Answer:
    counts = {"input_tokens": usage[0], "output_tokens": usage[1], "total_tokens": sum(usage)}
    end = response_end("completed", [after] if after else [], counts)
    all_events = _events(*numbered([*response_start(), *before, *deltas, *after, end]))
    first, last = 2 + len(before), 2 + len(before) + len(deltas)
    return Answer("responses", all_events[:first], all_events[first:last], all_events[last:])


_USAGE = (11, 7)


def _chat_token(**delta: Any) -> Answer:
    return _chat([chunk(delta), chunk({"content": "b"})], _USAGE)


def _block_token(start: Body, delta: Body) -> Answer:
    return _messages([block_start(0, start)], [block_delta(0, delta)], _USAGE)


def _item_token(kind: str, delta: str) -> Answer:
    added = typed("response.output_item.added", output_index=0, item={"type": kind, "id": "i"})
    return _responses([added], [typed(delta, delta="a", output_index=0, item_id="i")], [], _USAGE)


_CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
_CALL_ITEM = {"type": "function_call", "id": "i", "name": "f"}

# Each kind of event that is a stream's first token, with what comes before and after it.
FIRST_TOKENS: dict[str, Answer] = {
    "chat-content": _chat_token(content="a"),
    "chat-reasoning": _chat_token(reasoning_content="a"),
    "chat-tool": _chat_token(tool_calls=[_CALL]),
    "messages-text": _block_token({"type": "text", "text": ""}, {"type": "text_delta", "text": "a"}),
    "messages-thinking": _block_token(
        {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "a"}
    ),
    "messages-tool": _messages([], [block_start(0, {"type": "tool_use", "id": "t", "name": "f", "input": {}})], _USAGE),
    "responses-text": _item_token("message", "response.output_text.delta"),
    "responses-reasoning": _item_token("reasoning", "response.reasoning_summary_text.delta"),
    "responses-tool": _responses(
        [], [typed("response.output_item.added", output_index=0, item=_CALL_ITEM)], [], _USAGE
    ),
}
