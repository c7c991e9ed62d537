"""One realistic stream per API, as an upstream sends it and as a client of the relay must get it, cut or whole.

The upstream's line ends, comments, `id:` and `retry:` differ from event to event, as real ones do. What the
client must get is spelled out here without the relay's own code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.processes import RelayProcess
from tests.support.sseclient import RawEvent, RawStream, open_stream

Api = Literal["chat", "messages", "responses"]
APIS: tuple[Api, ...] = ("chat", "messages", "responses")

# Characters at which careless line splitting breaks, raw as JSON allows them, and some that take 2 to 4 bytes.
ODD_TEXT = "Zürich\u2028über\u0085alles \x7f 東京 🎉"


@dataclass(frozen=True)
class Event:
    """`kind` is the `event:` line ("" for none); `data` may have several lines."""

    data: str
    kind: str = ""

    def from_upstream(self, style: int) -> bytes:
        """The event in one of the spellings that the format allows."""
        lines = [f"event: {self.kind}"] if self.kind else []
        lines += [f"data: {line}" for line in self.data.split("\n")]
        match style % 5:
            case 0:
                end = "\n"
            case 1:
                end = "\r\n"
            case 2:
                end = "\n"
                lines = [": keep-alive", "", *(line.replace(": ", ":", 1) for line in lines)]
            case 3:
                end = "\n"
                lines = ["id: theirs-7", *lines, "retry: 1500"]
            case _:
                end = "\r"
        return (end.join(lines) + end + end).encode()

    def to_client(self, event_id: str | None) -> bytes:
        """The bytes that the relay must make of it (no id for a stream without a log), as `masked` leaves them."""
        lines = [f"id: {event_id}"] if event_id else []
        lines += ["retry: NNNN"] if event_id and event_id.endswith(".1") else []
        lines += [f"event: {self.kind}"] if self.kind else []
        lines += [f"data: {line}" for line in self.data.split("\n")]
        return ("\n".join(lines) + "\n\n").encode()


@dataclass(frozen=True)
class Sample:
    """An API, how it is asked, and its stream."""

    api: Api
    path: str
    heartbeat: bytes
    events: tuple[Event, ...]

    @property
    def frames(self) -> tuple[bytes, ...]:
        """What the upstream sends, event by event."""
        return tuple(event.from_upstream(style) for style, event in enumerate(self.events))

    def expected(self, stream_id: str, upto: int | None = None) -> bytes:
        """The whole body that a client gets (or its first events)."""
        return b"".join(event.to_client(f"{stream_id}.{n}") for n, event in enumerate(self.events[:upto], start=1))

    def headers(self, token: str = "sk-one") -> dict[str, str]:
        if self.api == "messages":
            return {"x-api-key": token, "anthropic-version": "2023-06-01"}
        return {"authorization": f"Bearer {token}"}

    def body(self, model: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": ODD_TEXT}]
        asked: dict[str, Any] = {"input": turns} if self.api == "responses" else {"messages": turns}
        if self.api == "messages":
            asked["max_tokens"] = 100
        return {"model": model, **asked, **({"stream": True} if stream else {}), **more}


def masked(raw: bytes) -> bytes:
    """Bytes of a stream without the one thing in it that is drawn by lot: the retry hint of its first event."""
    return _HINT.sub(rb"\1retry: NNNN\n", raw)


_HINT = re.compile(rb"\A(id: st_[A-Za-z0-9_-]+\.1\n)retry: [1-9][0-9]{2,3}\n")


def _dump(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _chunk(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}


def _call(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **more, "function": {"arguments": arguments}}]}


_USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}

CHAT_USAGE_EVENT = Event(_dump({**_chunk({}), "choices": [], "usage": _USAGE}))

_CHAT = (
    Event(_dump(_chunk({"role": "assistant", "content": ""}))),
    Event(_dump(_chunk({"reasoning_content": "Grüße …"}))),
    Event(_dump(_chunk({"content": "Hello, "}))),
    Event(_dump(_chunk({"content": ODD_TEXT}))),
    Event(_dump(_chunk({"content": "in lines"}), indent=1)),
    Event(_dump(_chunk({"content": "named"})), kind="message"),
    Event(_dump(_chunk(_call("", id="call_1", type="function")))),
    Event(_dump(_chunk(_call('{"city":')))),
    Event(_dump(_chunk(_call(' "Zürich"}')))),
    Event(_dump(_chunk({}, "tool_calls"))),
    CHAT_USAGE_EVENT,
    Event("[DONE]"),
)


def _typed(kind: str, indent: int | None = None, **fields: Any) -> Event:
    return Event(_dump({"type": kind, **fields}, indent), kind)


def _delta(index: int, indent: int | None = None, **delta: str) -> Event:
    return _typed("content_block_delta", indent, index=index, delta=delta)


_MESSAGES = (
    _typed("message_start", message={"id": "msg_1", "role": "assistant", "usage": {"input_tokens": 9}}),
    _typed("ping"),
    _typed("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    _delta(0, type="text_delta", text="Hello, "),
    _delta(0, type="text_delta", text=ODD_TEXT),
    _delta(0, indent=1, type="text_delta", text="in lines"),
    _typed("content_block_stop", index=0),
    _typed("content_block_start", index=1, content_block={"type": "tool_use", "id": "toolu_1", "name": "w"}),
    _delta(1, type="input_json_delta", partial_json='{"city":'),
    _delta(1, type="input_json_delta", partial_json=' "Zürich"}'),
    _typed("content_block_stop", index=1),
    _typed("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 12}),
    _typed("message_stop"),
)

_ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
_CALL = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "weather", "arguments": ""}


def _response(number: int, kind: str, indent: int | None = None, named: bool = True, **fields: Any) -> Event:
    kind = f"response.{kind}"
    return Event(_dump({"type": kind, "sequence_number": number, **fields}, indent), kind if named else "")


_RESPONSES = (
    _response(0, "created", response={"id": "resp_1", "status": "in_progress"}),
    _response(1, "in_progress", response={"id": "resp_1", "status": "in_progress"}),
    _response(2, "output_item.added", output_index=0, item=_ITEM),
    _response(3, "content_part.added", output_index=0, part={"type": "output_text", "text": ""}),
    _response(4, "output_text.delta", delta=ODD_TEXT),
    _response(5, "output_text.delta", indent=1, delta="in lines"),
    _response(6, "output_text.delta", named=False, delta="unnamed"),
    _response(7, "output_text.done", text="…"),
    _response(8, "output_item.done", output_index=0, item=_ITEM),
    _response(9, "output_item.added", output_index=1, item=_CALL),
    _response(10, "function_call_arguments.delta", delta='{"city": "Zürich"}'),
    _response(11, "function_call_arguments.done", arguments='{"city": "Zürich"}'),
    _response(12, "output_item.done", output_index=1, item=_CALL),
    _response(13, "completed", response={"id": "resp_1", "status": "completed", "usage": {"input_tokens": 9}}),
)

_COMMENT = b": hb\n"
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'

SAMPLES: dict[Api, Sample] = {
    "chat": Sample("chat", "/v1/chat/completions", _COMMENT, _CHAT),
    "messages": Sample("messages", "/v1/messages", _PING, _MESSAGES),
    "responses": Sample("responses", "/v1/responses", _COMMENT, _RESPONSES),
}


def error_of(api: Api, frames: Sequence[RawEvent], last_sequence: int | None = None) -> tuple[str, str]:
    """The code and the message of the error that ends a stream, after a check of the API's exact form."""
    if api == "chat":
        frame, done = frames
        assert (done.event, done.data) == (None, "[DONE]")
        assert frame.event is None
        assert frame.json.keys() == {"error"}
        error = frame.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["param"] is None
    else:
        (frame,) = frames
        assert frame.event == "error"
        assert frame.json["type"] == "error"
        error = frame.json["error"]
        if api == "messages":
            assert frame.json["request_id"]
            assert error["type"]
        else:
            assert frame.json["sequence_number"] == (0 if last_sequence is None else last_sequence + 1)
            assert (frame.json["code"], frame.json["message"]) == (error["code"], error["message"])
            assert (frame.json["param"], error["param"]) == (None, None)
    assert error["message"]
    return error["code"], error["message"]


def refusal_of(api: Api, body: bytes) -> tuple[str, str]:
    """The code and the message of a refusal, after a check of the API's own error shape."""
    parsed = json.loads(body)
    if api == "messages":
        assert parsed.keys() == {"type", "error", "request_id"}
        assert parsed["type"] == "error"
        assert parsed["request_id"]
    else:
        assert parsed.keys() == {"error"}
        assert {"message", "type", "param", "code"} <= parsed["error"].keys()
    error = parsed["error"]
    assert isinstance(error["type"], str)
    assert error["message"].endswith((".", ")"))
    return error["code"], error["message"]


def start(relay: RelayProcess, sample: Sample, model: str, token: str = "sk-one") -> RawStream:
    """POST a new stream; its id is `stream_id(...)` of the answer."""
    answer = open_stream(relay.url + sample.path, headers=sample.headers(token), body=sample.body(model))
    assert answer.status == 200, answer.read()
    return answer


def resume(
    relay: RelayProcess,
    sample: Sample,
    last_event_id: str,
    how: str = "post",
    token: str = "sk-one",
    body: object = None,
) -> RawStream:
    """Come back by the same POST ("post"), by GET /streams/{id} with the header ("get") or the query ("query")."""
    headers = sample.headers(token)
    if how == "post":
        again = sample.body("nothing-may-go-upstream") if body is None else body
        return open_stream(relay.url + sample.path, headers={**headers, "last-event-id": last_event_id}, body=again)
    url = f"{relay.url}/streams/{last_event_id.rpartition('.')[0]}"
    if how == "get":
        return open_stream(url, "GET", {**headers, "last-event-id": last_event_id})
    return open_stream(f"{url}?last_event_id={last_event_id}", "GET", headers)


def rest(answer: RawStream) -> bytes:
    """The events up to the stream's end, heartbeats removed and `masked`; nothing else may be in the body."""
    with answer:
        assert answer.status == 200, answer.read()
        parts = list(answer)
        assert answer.ended == "zero-chunk"
        assert answer.raw_body.endswith(b"".join(part.raw for part in parts))
        return masked(b"".join(part.raw for part in parts if not part.is_heartbeat))
