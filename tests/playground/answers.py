"""Answers of the three APIs that a test can hold in their middle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.support.scripted import Gate, Step, stream

WORDS = [f"word-{n} " for n in range(1, 41)]
TEXT = "".join(WORDS)
FIRST_HALF = "".join(WORDS[:20])


def answer(api: str, gate: str, words: Sequence[str] = WORDS) -> tuple[Step, ...]:
    """The words as a stream that waits at the gate after half of them."""
    before, deltas, after = {"chat": _chat, "messages": _messages, "responses": _responses}[api](words)
    half = len(deltas) // 2
    return stream(*before, *deltas[:half], Gate(gate), *deltas[half:], *after)


def _frame(value: dict[str, Any]) -> str:
    kind = f"event: {value['type']}\n" if "type" in value else ""
    return f"{kind}data: {json.dumps(value)}\n\n"


def _chat(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return _frame({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more})

    usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
    return (
        [chunk({"role": "assistant", "content": ""})],
        [chunk({"content": word}) for word in words],
        [chunk({}, "stop", usage=usage), "data: [DONE]\n\n"],
    )


def _messages(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    start = {"type": "message_start", "message": {**message, "usage": {"input_tokens": 7, "output_tokens": 1}}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words
    ]
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": len(words)}}
    last = [{"type": "content_block_stop", "index": 0}, end, {"type": "message_stop"}]
    return [_frame(start), _frame(block)], [_frame(delta) for delta in deltas], [_frame(event) for event in last]


def _responses(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    response = {
        "id": "resp_1",
        "object": "response",
        "model": "m",
        "status": "in_progress",
        "error": None,
        "output": [],
    }
    usage = {"input_tokens": 7, "output_tokens": len(words), "total_tokens": 7 + len(words)}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    created = {"type": "response.created", "sequence_number": 0, "response": response}
    deltas = [
        {"type": "response.output_text.delta", "sequence_number": n, **where, "delta": word}
        for n, word in enumerate(words, start=1)
    ]
    completed = {
        "type": "response.completed",
        "sequence_number": len(words) + 1,
        "response": {**response, "status": "completed", "usage": usage},
    }
    return [_frame(created)], [_frame(delta) for delta in deltas], [_frame(completed)]
