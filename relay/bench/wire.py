"""What the generator and the paced upstream say to each other through a gateway.

The order for a stream stands in the request's text, and each event's stamp (stream, number, send time) in the
event's text, because text is the one thing that every gateway hands on: ids, JSON layout, unknown fields and
headers may all be made anew on the way. Nothing here does I/O.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

# Stream, number, nanoseconds of CLOCK_MONOTONIC, which all processes of one machine share; of fixed width, so
# that a stamp cut by a network read cannot be taken for a shorter one. Its first byte is looked for at the speed of
# memory; without it, an event of 3 MB took the generator 80 ms.
STAMP = re.compile(rb"@(\d{6}):(\d{6}):(\d{16})")
STAMP_TEXT = b"@%06d:%06d:%016d "
STAMP_BYTES = 33
MAX_LENGTH = 999_999
STREAMS = 1_000_000

_ORDER = re.compile(rb"relay-bench stream=(\d+) length=(\d+) rate=(-?[0-9.]+) payload=(\d+)")


@dataclass(frozen=True, slots=True)
class Order:
    """One stream as the generator wants it from the upstream."""

    stream: int
    """Which of this run's streams it is, so that an event of another one is told apart."""
    length: int
    """Stamped events."""
    rate: float
    """Events a second. 0: as fast as they are taken. Below 0: one event, and the rest when released."""
    payload: int
    """Bytes of text in an event; the stamp's are part of them."""

    def text(self) -> str:
        return f"relay-bench stream={self.stream} length={self.length} rate={self.rate:f} payload={self.payload}"


def order_in(request: bytes | bytearray, start: int = 0, stop: int = sys.maxsize) -> Order | None:
    """The order in a request's body, however a gateway has laid out the JSON around it."""
    found = _ORDER.search(request, start, stop)
    return None if found is None else Order(int(found[1]), int(found[2]), float(found[3]), int(found[4]))


@dataclass(frozen=True, slots=True)
class Api:
    """One streaming API, as far as a benchmark needs it."""

    name: str
    path: str
    over: bytes
    """Behind it comes no text that counts: a responses stream repeats all of its text at its end."""
    terminal: bytes
    """What only a stream that ended well contains."""
    opening: tuple[bytes, ...]
    event: Callable[[int, bytes], bytes]
    """The frame of event n with this text."""
    closing: Callable[[int], tuple[bytes, ...]]
    """The frames behind the last event, n being its number."""

    def body(self, model: str, order: Order, prompt: int = 0) -> bytes:
        """`prompt`: bytes of text beside the order."""
        text = order.text() + " word" * (prompt // 5)
        message = [{"role": "user", "content": text}]
        fields: dict[str, object] = {"model": model, "stream": True}
        if self.name == "responses":
            fields["input"] = text
        else:
            fields["messages"] = message
        if self.name == "messages":
            fields["max_tokens"] = 4096
        return json.dumps(fields).encode()


def _frame(fields: dict[str, object], named: bool = True) -> bytes:
    data = json.dumps(fields, separators=(",", ":")).encode()
    return b"event: %b\ndata: %b\n\n" % (str(fields["type"]).encode(), data) if named else b"data: %b\n\n" % data


_CHUNK = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
)


def _chat_event(number: int, text: bytes) -> bytes:
    return _CHUNK % (b'{"content":"%b"}' % text, b"null")


CHAT = Api(
    "chat",
    "/v1/chat/completions",
    over=b"[DONE]",
    terminal=b"[DONE]",
    opening=(_CHUNK % (b'{"role":"assistant","content":""}', b"null"),),
    event=_chat_event,
    closing=lambda number: (_CHUNK % (b"{}", b'"stop"'), b"data: [DONE]\n\n"),
)


def _messages_event(number: int, text: bytes) -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"%b"}}\n\n' % text
    )


MESSAGES = Api(
    "messages",
    "/v1/messages",
    over=b"message_stop",
    terminal=b"message_stop",
    opening=(
        _frame(
            {
                "type": "message_start",
                "message": {
                    "id": "msg_bench",
                    "type": "message",
                    "role": "assistant",
                    "model": "bench",
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": {"input_tokens": 1, "output_tokens": 1},
                },
            }
        ),
        _frame({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    ),
    event=_messages_event,
    closing=lambda number: (
        _frame({"type": "content_block_stop", "index": 0}),
        _frame(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": number},
            }
        ),
        _frame({"type": "message_stop"}),
    ),
)

_RESPONSE: dict[str, object] = {
    "id": "resp_bench",
    "object": "response",
    "created_at": 1700000000,
    "status": "in_progress",
    "model": "bench",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
_PART: dict[str, object] = {"type": "output_text", "text": "", "annotations": []}
_ITEM: dict[str, object] = {"id": "msg_bench", "type": "message", "role": "assistant", "content": []}
_AT: dict[str, object] = {"item_id": "msg_bench", "output_index": 0, "content_index": 0}
_RESPONSES_OPENING: tuple[dict[str, object], ...] = (
    {"type": "response.created", "response": _RESPONSE},
    {"type": "response.in_progress", "response": _RESPONSE},
    {"type": "response.output_item.added", "output_index": 0, "item": {**_ITEM, "status": "in_progress"}},
    {"type": "response.content_part.added", **_AT, "part": _PART},
)


def _responses_event(number: int, text: bytes) -> bytes:
    return (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,'
        b'"item_id":"msg_bench","output_index":0,"content_index":0,"delta":"%b"}\n\n'
        % (number + len(_RESPONSES_OPENING) - 1, text)
    )


def _responses_closing(number: int) -> tuple[bytes, ...]:
    item = {**_ITEM, "status": "completed", "content": [_PART]}
    usage = {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": number,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": number + 1,
    }
    ends: tuple[dict[str, object], ...] = (
        {"type": "response.output_text.done", **_AT, "text": ""},
        {"type": "response.content_part.done", **_AT, "part": _PART},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {
            "type": "response.completed",
            "response": {**_RESPONSE, "status": "completed", "output": [item], "usage": usage},
        },
    )
    first = number + len(_RESPONSES_OPENING)
    return tuple(_frame({**end, "sequence_number": first + i}) for i, end in enumerate(ends))


RESPONSES = Api(
    "responses",
    "/v1/responses",
    over=b"response.output_text.done",
    terminal=b"response.completed",
    opening=tuple(_frame({**fields, "sequence_number": i}) for i, fields in enumerate(_RESPONSES_OPENING)),
    event=_responses_event,
    closing=_responses_closing,
)

APIS = {api.name: api for api in (CHAT, MESSAGES, RESPONSES)}
