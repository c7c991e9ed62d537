"""Anthropic messages: events to the object `message` (Anthropic API, "Messages").

As the SDKs' own accumulator has it: blocks of content with their deltas, a tool's input parsed, usage overwritten by
what `message_delta` tells. A tool's input that is cut short is what can be read of it, as it is for them.
"""

from __future__ import annotations

from typing import Any

import orjson

from relay.protocol.dialect import JsonObject, parse_count
from relay.protocol.finished.assembly import Assembly
from relay.protocol.finished.cut_short import read_cut_short
from relay.protocol.finished.parts import Entries, Grown, Text

# What a delta is to its block: a part of it, or the whole of what it names.
_WHOLE = frozenset(("signature_delta", "compaction_delta"))
_EMPTY: dict[str, Any] = {
    "id": "", "type": "message", "role": "assistant", "model": "", "stop_reason": None, "stop_sequence": None,
}  # fmt: skip
# The block of a delta whose start has not come.
_STARTS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "tool_use"}


class Message(Assembly):
    def __init__(self) -> None:
        self._message: Grown | None = None
        self._blocks: dict[int, _Block] = {}

    def take(self, message: JsonObject, kind: str) -> None:
        kind = kind_of(message, kind)
        if kind in ("ping", "error"):
            return
        if self._message is None:
            self._message = Grown(_EMPTY)
        whole = self._message
        index = parse_count(message.get("index")) or 0
        if kind == "message_start":
            if isinstance(start := message.get("message"), dict):
                whole.update(start)
                content = start.get("content")
                self._blocks = {n: _Block(b) for n, b in enumerate(content if isinstance(content, list) else [])}
        elif kind == "content_block_start":
            start = message.get("content_block")
            self._blocks[index] = _Block(start)
            if isinstance(start, dict) and start.get("type") == "fallback" and isinstance(start.get("to"), dict):
                whole["model"] = start["to"].get("model") or whole["model"]  # it names who has gone on
        elif kind == "content_block_delta":
            if isinstance(delta := message.get("delta"), dict):
                if index not in self._blocks:
                    self._blocks[index] = _Block({"type": _STARTS.get(str(delta.get("type")), "text")})
                self._blocks[index].add(delta)
        elif kind in ("message_delta", "message_stop"):
            delta = message.get("delta")
            self._end(whole, {**message, **delta} if isinstance(delta, dict) else message)

    @staticmethod
    def _end(whole: Grown, given: JsonObject) -> None:
        for key, value in given.items():
            if key == "usage":
                if isinstance(value, dict):
                    held = whole.get("usage")
                    told = {name: n for name, n in value.items() if n is not None}
                    whole["usage"] = {**(held if isinstance(held, dict) else {}), **told}
            elif key not in ("type", "delta") and (value is not None or key not in whole):
                whole[key] = value

    def content(self) -> Grown | None:
        if self._message is None:
            return None
        return Grown(self._message, content=Entries(self._blocks[at].content() for at in sorted(self._blocks)))


class _Block:
    def __init__(self, start: object) -> None:
        self._block = Grown(start if isinstance(start, dict) else {})
        self._input: Text | None = None

    def add(self, delta: JsonObject) -> None:
        kind = kind_of(delta, "")
        for key, value in delta.items():
            if key == "type" or value is None:
                continue
            held = self._block.get(key)
            if key == "partial_json" and isinstance(value, str):
                self._input = self._input or Text()
                self._input.add(value)
            elif key == "citation":
                self._listed("citations").append(value)
            elif isinstance(value, list) and kind not in _WHOLE:
                self._listed(key).extend(value)
            elif isinstance(value, str) and isinstance(held, str | Text) and kind not in _WHOLE:
                if isinstance(held, Text):
                    held.add(value)
                else:
                    self._block[key] = Text(held, value)
            else:
                self._block[key] = Text(value) if isinstance(value, str) else value

    def _listed(self, key: str) -> list[Any]:
        held = self._block.get(key)
        if not isinstance(held, Entries):
            held = self._block[key] = Entries(held if isinstance(held, list) else ())
        return held.rows

    def content(self) -> Grown:
        if not self._input:
            return self._block
        text = str(self._input)
        try:
            given = orjson.loads(text)
        except ValueError:
            given = read_cut_short(text)
        return Grown(self._block, input=given)


def kind_of(message: JsonObject, kind: str) -> str:
    """What an event is by its object, which has the last word, or by its `event:` field."""
    told = message.get("type")
    return told if isinstance(told, str) and told else kind
