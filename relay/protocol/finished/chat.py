"""OpenAI chat completions: chunks to a `chat.completion` (OpenAI API reference, "The chat completion object").

As the SDKs' own accumulators have it, but for what upstreams do that these do not expect: labels (`role`, `id`) that
are sent again are not doubled, `usage` and the like keep their last value and not the last chunk's, parallel tool calls
without an index, or all under one, stay apart, and audio whose pieces are padded is one piece of base64 again.
"""

from __future__ import annotations

from typing import Any

from relay.protocol import finish_reasons
from relay.protocol.dialect import JsonObject, parse_count
from relay.protocol.finished.assembly import Assembly
from relay.protocol.finished.parts import Base64, Entries, Grown, Text, merge

_OBJECTS = {"chat.completion.chunk": "chat.completion"}
# Of the first chunk that has one; of all other members the last one counts.
_FIRST = ("id", "object", "created", "model")
# Never part of an answer: padding, and what a stream says of its end.
_NONE = frozenset(("choices", "error", "obfuscation"))
# Whose entries go on from one chunk to the next, where an upstream sends them as lists.
_PARTS = ("content", "thinking", "text")


class ChatCompletion(Assembly):
    def __init__(self) -> None:
        self._whole: Grown | None = None
        self._choices: dict[int, _Choice] = {}

    def take(self, message: JsonObject, kind: str) -> None:
        choices = message.get("choices")
        if kind == "error" or (choices is None and "error" in message):
            return
        if self._whole is None:
            self._whole = Grown(dict.fromkeys(_FIRST), choices=None)
        whole = self._whole
        for key, value in message.items():
            if key in _NONE or value is None:
                continue
            if key in _FIRST:
                whole[key] = whole[key] or value
            elif key == "usage" or not isinstance(value, dict):
                whole[key] = value
            else:
                held = whole.get(key)
                whole[key] = {**held, **value} if isinstance(held, dict) else value
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                index = parse_count(choice.get("index")) or 0
                if index not in self._choices:
                    self._choices[index] = _Choice(index)
                self._choices[index].take(choice)

    def content(self) -> Grown | None:
        if self._whole is None:
            return None
        whole = Grown(self._whole)
        name = whole["object"]
        whole["object"] = _OBJECTS.get(name, name) if isinstance(name, str) and name else "chat.completion"
        whole["choices"] = Entries(self._choices[index].content() for index in sorted(self._choices))
        own = whole.get("x_groq")
        if "usage" not in whole and isinstance(own, dict) and "usage" in own:
            whole["usage"] = own["usage"]
        return whole


class _Choice:
    def __init__(self, index: int) -> None:
        self._choice = Grown(index=index)
        self._message = Grown(role="assistant", content=None)
        self._calls = _ToolCalls()
        self._is_text = False

    def take(self, choice: JsonObject) -> None:
        delta = choice.get("delta")
        if delta is None and not self._message["content"]:
            delta = choice.get("message")  # some upstreams send no deltas where the answer is short
        if isinstance(delta, dict):
            self._add(delta)
        for key, value in choice.items():
            if key == "text" and isinstance(value, str):  # of `/v1/completions`, which some upstreams answer with
                self._is_text = True
                merge(self._choice, {key: value})
            elif key in ("index", "delta", "message") or value is None:
                continue
            elif isinstance(value, dict | list):
                merge(self._choice, {key: value})
            elif key != "finish_reason" or finish_reasons.judge(value) != finish_reasons.UNFINISHED:
                self._choice[key] = value

    def _add(self, delta: JsonObject) -> None:
        plain = {}
        for key, value in delta.items():
            if key == "tool_calls":
                self._calls.add(value)
            elif key in _PARTS and (isinstance(value, list) or isinstance(self._message.get(key), Entries)):
                self._message[key] = _parts(self._message.get(key), value)
            elif key == "audio" and isinstance(value, dict):
                self._message["audio"] = _audio(self._message.get("audio"), value)
            else:
                plain[key] = value
        merge(self._message, plain)

    def content(self) -> Grown:
        found = Grown(self._choice)
        if not self._is_text:
            message = Grown(self._message)
            if rows := self._calls.rows:
                message["tool_calls"] = Entries(rows)
            found["message"] = message
        found.setdefault("finish_reason", None)
        return found


class _ToolCalls:
    """Calls of tools by their index, which no answer has that is not streamed."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Grown]] = []
        self._at: dict[int, Grown] = {}
        self._named: dict[str, Grown] = {}

    @property
    def rows(self) -> list[Grown]:
        return [row for _, row in sorted(self._rows, key=lambda entry: entry[0])]

    def add(self, calls: Any) -> None:
        for call in calls if isinstance(calls, list) else []:
            if isinstance(call, dict):
                held = self._of(call)
                function = call.get("function")
                merge(held, {key: value for key, value in call.items() if key not in ("index", "function")})
                if isinstance(function, dict):
                    into = held.setdefault("function", Grown())
                    _name(into, function.get("name"))
                    merge(into, {key: value for key, value in function.items() if key != "name"})

    def _of(self, call: JsonObject) -> Grown:
        """The call that this one goes on: the one with its index, unless that has another id; else the one with its id,
        else the last one."""
        index, name = parse_count(call.get("index")), call.get("id")
        name = name if isinstance(name, str) and name else None
        if index is not None:
            held = self._at.get(index)
            if held is not None and name and held.get("id") not in (None, "", name):
                held = None
        elif name is not None:
            held = self._named.get(name)
        else:
            held = self._rows[-1][1] if self._rows else None
        if held is None:
            held = Grown()
            at = len(self._rows) if index is None else index
            self._rows.append((at, held))
            self._at[at] = held
        if name is not None:
            self._named[name] = held
        return held


def _name(function: Grown, name: Any) -> None:
    """A function's name comes whole, in parts, or whole again and again."""
    held = function.get("name")
    if isinstance(name, str) and name and name != held:
        function["name"] = held + name if isinstance(held, str) else name
    else:
        function.setdefault("name", name)


def _parts(held: Any, value: Any) -> Entries:
    """A list of parts of the answer, to which strings or further parts are added."""
    parts = held if isinstance(held, Entries) else Entries()
    if isinstance(held, Text) and held:
        parts.rows.append(Grown(type="text", text=held))
    for part in value if isinstance(value, list) else [{"type": "text", "text": value}] if value else []:
        kind = part.get("type") if isinstance(part, dict) else None
        inner = part.get(kind) if isinstance(kind, str) else None
        last = parts.rows[-1] if parts.rows else None
        if kind in _PARTS and isinstance(inner, str | list):
            if not isinstance(last, Grown) or last.get("type") != kind:
                last = Grown(type=kind)
                parts.rows.append(last)
            if isinstance(inner, str):
                merge(last, part)
            else:
                merge(last, {name: member for name, member in part.items() if name != kind})
                last[kind] = _parts(last.get(kind), inner)
        else:
            parts.rows.append(part)
    return parts


def _audio(held: Any, delta: JsonObject) -> Grown:
    into = held if isinstance(held, Grown) else Grown(data=Base64())
    merge(into, delta)
    return into
