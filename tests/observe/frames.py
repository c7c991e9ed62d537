"""Streams of the three APIs, cut at their first token: what comes before it, itself, and what follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}


@dataclass(frozen=True)
class Spoken:
    api: str
    before: tuple[str, ...]
    token: str
    rest: tuple[str, ...]

    @property
    def path(self) -> str:
        return PATHS[self.api]


def data(value: object, kind: str = "") -> str:
    head = f"event: {kind}\n" if kind else ""
    return f"{head}data: {value if isinstance(value, str) else json.dumps(value)}\n\n"


def chat(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return data({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more})


def typed(kind: str, **fields: Any) -> str:
    return data({"type": kind, **fields}, kind)


_CHAT_ROLE = chat({"role": "assistant", "content": ""})
_CHAT_REST = (
    chat({"content": "b"}),
    chat({}, "stop"),
    data({"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}),
    data("[DONE]"),
)
_MESSAGE_START = typed(
    "message_start",
    message={"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 11}},
)
_MESSAGE_REST = (
    typed("content_block_stop", index=0),
    typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
    typed("message_stop"),
)
_RESPONSE = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
_RESPONSE_START = (
    typed("response.created", response=_RESPONSE, sequence_number=0),
    typed("response.in_progress", response=_RESPONSE, sequence_number=1),
)
_RESPONSE_REST = (
    typed(
        "response.completed",
        response={**_RESPONSE, "status": "completed", "usage": {"input_tokens": 11, "output_tokens": 7}},
        sequence_number=9,
    ),
)


def _block(block: dict[str, Any]) -> str:
    return typed("content_block_start", index=0, content_block=block)


def _delta(delta: dict[str, Any]) -> str:
    return typed("content_block_delta", index=0, delta=delta)


_MESSAGE_ITEM = typed(
    "response.output_item.added", output_index=0, item={"type": "message", "id": "i"}, sequence_number=2
)
_REASONING_ITEM = typed(
    "response.output_item.added", output_index=0, item={"type": "reasoning", "id": "i"}, sequence_number=2
)

CASES = {
    "chat-content": Spoken("chat", (_CHAT_ROLE,), chat({"content": "a"}), _CHAT_REST),
    "chat-reasoning": Spoken("chat", (_CHAT_ROLE,), chat({"reasoning_content": "a"}), _CHAT_REST),
    "chat-tool": Spoken(
        "chat",
        (_CHAT_ROLE,),
        chat({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        _CHAT_REST,
    ),
    "messages-text": Spoken(
        "messages",
        (_MESSAGE_START, _block({"type": "text", "text": ""})),
        _delta({"type": "text_delta", "text": "a"}),
        _MESSAGE_REST,
    ),
    "messages-thinking": Spoken(
        "messages",
        (_MESSAGE_START, _block({"type": "thinking", "thinking": ""})),
        _delta({"type": "thinking_delta", "thinking": "a"}),
        _MESSAGE_REST,
    ),
    "messages-tool": Spoken(
        "messages",
        (_MESSAGE_START, typed("ping")),
        _block({"type": "tool_use", "id": "t", "name": "f", "input": {}}),
        _MESSAGE_REST,
    ),
    "responses-text": Spoken(
        "responses",
        (*_RESPONSE_START, _MESSAGE_ITEM),
        typed("response.output_text.delta", delta="a", output_index=0, item_id="i", sequence_number=3),
        _RESPONSE_REST,
    ),
    "responses-reasoning": Spoken(
        "responses",
        (*_RESPONSE_START, _REASONING_ITEM),
        typed("response.reasoning_summary_text.delta", delta="a", output_index=0, item_id="i", sequence_number=3),
        _RESPONSE_REST,
    ),
    "responses-tool": Spoken(
        "responses",
        _RESPONSE_START,
        typed(
            "response.output_item.added",
            output_index=0,
            item={"type": "function_call", "id": "i", "name": "f"},
            sequence_number=2,
        ),
        _RESPONSE_REST,
    ),
}
