"""OpenAI responses: the object of the event that ends the stream (`response.completed`, `incomplete`, `failed`).

It is put together from its items where that event has not come, or has come without them, as some upstreams send it.
"""

from __future__ import annotations

from typing import Any

from relay.protocol.dialect import JsonObject, parse_count
from relay.protocol.finished.assembly import Assembly
from relay.protocol.finished.messages import kind_of
from relay.protocol.finished.parts import Entries, Grown, Text

_UNENDED = (None, "in_progress", "queued")
# What a delta adds to its item, by the kind of the event: the list, the index in it, the part's type and its field; or,
# without a list, the item's own field.
_DELTAS = {
    "response.output_text": ("content", "content_index", "output_text", "text"),
    "response.refusal": ("content", "content_index", "refusal", "refusal"),
    "response.reasoning_text": ("content", "content_index", "reasoning_text", "text"),
    "response.reasoning_summary_text": ("summary", "summary_index", "summary_text", "text"),
    "response.function_call_arguments": ("", "", "", "arguments"),
    "response.mcp_call_arguments": ("", "", "", "arguments"),
    "response.custom_tool_call_input": ("", "", "", "input"),
    "response.code_interpreter_call_code": ("", "", "", "code"),
}
_PARTS = {
    "response.content_part": ("content", "content_index"),
    "response.reasoning_summary_part": ("summary", "summary_index"),
}


class Response(Assembly):
    def __init__(self) -> None:
        self._response: JsonObject | None = None
        self._items: dict[int, _Item] = {}

    def take(self, message: JsonObject, kind: str) -> None:
        kind = kind_of(message, kind)
        if isinstance(response := message.get("response"), dict):
            self._response = response
            return
        index = parse_count(message.get("output_index"))
        if kind in ("response.output_item.added", "response.output_item.done"):
            if isinstance(item := message.get("item"), dict):
                at = len(self._items) if index is None else index
                before = self._items.get(at)
                self._items[at] = _Item(item, before if kind.endswith("done") else None, done=kind.endswith("done"))
            return
        found = self._items.get(index or 0)
        if found is not None and not found.done:
            found.take(message, kind)

    def content(self) -> Grown | JsonObject | None:
        response = self._response
        if response is None:
            return None
        if response.get("output") or not self._items:
            return response
        ended = response.get("status") not in _UNENDED
        output = Entries(self._items[at].content(ended=ended) for at in sorted(self._items))
        return Grown(response, output=output)


class _Item:
    """`done`: the upstream has told it whole, but for what it had told `before` and leaves empty now."""

    def __init__(self, item: JsonObject, before: _Item | None, *, done: bool) -> None:
        self.done = done
        self.item = Grown(item)
        self.lists: dict[str, dict[int, Grown]] = {}
        if before is not None:
            self.lists = {name: parts for name, parts in before.lists.items() if not item.get(name)}
            self.item |= {
                key: text for key, text in before.item.items() if isinstance(text, Text) and not item.get(key)
            }

    def take(self, message: JsonObject, kind: str) -> None:
        name, _, last = kind.rpartition(".")
        if name in _PARTS and isinstance(part := message.get("part"), dict):
            listed, indexed = _PARTS[name]
            self._list(listed)[parse_count(message.get(indexed)) or 0] = Grown(part)
        elif name == "response.output_text.annotation":
            part = self._part("content", message, "content_index", "output_text")
            _rows(part, "annotations").append(message.get("annotation"))
        elif name in _DELTAS and last in ("delta", "done"):
            listed, indexed, part_type, field = _DELTAS[name]
            into = self._part(listed, message, indexed, part_type) if listed else self.item
            if last == "done":
                told = message.get(field)
                if isinstance(told, str):
                    into[field] = told
            elif isinstance(delta := message.get("delta"), str):
                held = into.get(field)
                if isinstance(held, Text):
                    held.add(delta)
                else:
                    into[field] = Text(held if isinstance(held, str) else "", delta)
                if isinstance(logprobs := message.get("logprobs"), list) and logprobs:
                    _rows(into, "logprobs").extend(logprobs)

    def _list(self, name: str) -> dict[int, Grown]:
        if name not in self.lists:
            begun = self.item.get(name)
            parts = begun if isinstance(begun, list) else []
            self.lists[name] = {at: Grown(part) for at, part in enumerate(parts) if isinstance(part, dict)}
        return self.lists[name]

    def _part(self, listed: str, message: JsonObject, indexed: str, kind: str) -> Grown:
        parts, at = self._list(listed), parse_count(message.get(indexed)) or 0
        if at not in parts:
            parts[at] = Grown(type=kind)
            if kind == "output_text":
                parts[at]["annotations"] = []
        return parts[at]

    def content(self, *, ended: bool) -> Grown:
        found = Grown(self.item)
        for name, parts in self.lists.items():
            found[name] = Entries(parts[at] for at in sorted(parts))
        if ended and not self.done and "status" in found:
            found["status"] = "incomplete"
        return found


def _rows(part: Grown, name: str) -> list[Any]:
    held = part.get(name)
    if not isinstance(held, Entries):
        held = part[name] = Entries(held if isinstance(held, list) else ())
    return held.rows
