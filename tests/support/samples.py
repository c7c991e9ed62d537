"""One realistic stream per API, as an upstream sends it and as a client of the relay must get it, cut or whole.

The upstream's line ends, comments, `id:` and `retry:` differ from event to event, as real ones do. What the
client must get is spelled out here without the relay's own code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.processes import RelayProcess
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.streams import (
    PATHS,
    Api,
    Body,
    block,
    chat_usage,
    chunk,
    credential,
    message_end,
    message_start,
    numbered,
    typed,
)

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
    heartbeat: bytes
    events: tuple[Event, ...]

    @property
    def path(self) -> str:
        return PATHS[self.api]

    @property
    def frames(self) -> tuple[bytes, ...]:
        """What the upstream sends, event by event."""
        return tuple(event.from_upstream(style) for style, event in enumerate(self.events))

    def expected(self, stream_id: str, upto: int | None = None) -> bytes:
        """The whole body that a client gets (or its first events)."""
        return b"".join(event.to_client(f"{stream_id}.{n}") for n, event in enumerate(self.events[:upto], start=1))

    def headers(self, token: str = "sk-one") -> dict[str, str]:
        return credential(self.api, token)

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


def _event(body: Body, indent: int | None = None, kind: str | None = None) -> Event:
    named = body.get("type", "") if kind is None else kind
    return Event(json.dumps(body, ensure_ascii=False, indent=indent), named)


def _text(content: str) -> Body:
    return chunk({"content": content})


def _call(arguments: str, **more: Any) -> Body:
    return chunk({"tool_calls": [{"index": 0, **more, "function": {"arguments": arguments}}]})


CHAT_USAGE_EVENT = _event(chat_usage(9, 12))

_CHAT = (
    _event(chunk({"role": "assistant", "content": ""})),
    _event(chunk({"reasoning_content": "Grüße …"})),
    _event(_text("Hello, ")),
    _event(_text(ODD_TEXT)),
    _event(_text("in lines"), indent=1),
    _event(_text("named"), kind="message"),
    _event(_call("", id="call_1", type="function")),
    _event(_call('{"city":')),
    _event(_call(' "Zürich"}')),
    _event(chunk({}, "tool_calls")),
    CHAT_USAGE_EVENT,
    Event("[DONE]"),
)

_TOOL = {"type": "tool_use", "id": "toolu_1", "name": "w"}
_WORDS = ("Hello, ", ODD_TEXT, "in lines")
_PARTS = ('{"city":', ' "Zürich"}')

_MESSAGES = tuple(
    _event(body, indent=1 if body.get("delta") == {"type": "text_delta", "text": "in lines"} else None)
    for body in (
        message_start({"input_tokens": 9}),
        *block(0, {"type": "text", "text": ""}, ({"type": "text_delta", "text": word} for word in _WORDS)),
        *block(1, _TOOL, ({"type": "input_json_delta", "partial_json": part} for part in _PARTS)),
        *message_end("tool_use", {"output_tokens": 12}),
    )
)

_ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
_CALL = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "weather", "arguments": ""}
_BEGUN = {"id": "resp_1", "status": "in_progress"}

_SPELLED: dict[str, dict[str, Any]] = {"in lines": {"indent": 1}, "unnamed": {"kind": ""}}

_RESPONSES = tuple(
    _event(body, **_SPELLED.get(body.get("delta", ""), {}))
    for body in numbered(
        [
            typed("response.created", response=_BEGUN),
            typed("response.in_progress", response=_BEGUN),
            typed("response.output_item.added", output_index=0, item=_ITEM),
            typed("response.content_part.added", output_index=0, part={"type": "output_text", "text": ""}),
            typed("response.output_text.delta", delta=ODD_TEXT),
            typed("response.output_text.delta", delta="in lines"),
            typed("response.output_text.delta", delta="unnamed"),
            typed("response.output_text.done", text="…"),
            typed("response.output_item.done", output_index=0, item=_ITEM),
            typed("response.output_item.added", output_index=1, item=_CALL),
            typed("response.function_call_arguments.delta", delta='{"city": "Zürich"}'),
            typed("response.function_call_arguments.done", arguments='{"city": "Zürich"}'),
            typed("response.output_item.done", output_index=1, item=_CALL),
            typed("response.completed", response={**_BEGUN, "status": "completed", "usage": {"input_tokens": 9}}),
        ]
    )
)

_COMMENT = b": hb\n"
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'

SAMPLES: dict[Api, Sample] = {
    "chat": Sample("chat", _COMMENT, _CHAT),
    "messages": Sample("messages", _PING, _MESSAGES),
    "responses": Sample("responses", _COMMENT, _RESPONSES),
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
        frame, *failed = frames
        assert frame.event == "error"
        assert frame.json["type"] == "error"
        error = frame.json["error"]
        if api == "messages":
            assert not failed
            assert frame.json["request_id"]
            assert error["type"]
        else:
            assert frame.json["sequence_number"] == (0 if last_sequence is None else last_sequence + 1)
            assert (frame.json["code"], frame.json["message"]) == (error["code"], error["message"])
            assert (frame.json["param"], error["param"]) == (None, None)
            (last,) = failed
            assert (last.event, last.json["sequence_number"]) == ("response.failed", frame.json["sequence_number"] + 1)
            assert last.json["response"]["status"] == "failed"
            # Agents wait as long as the message says after this code only.
            read = "rate_limit_exceeded" if " 429: " in error["message"] else error["code"]
            assert last.json["response"]["error"] == {"code": read, "message": error["message"]}
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
