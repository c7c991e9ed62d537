"""JSON that is put together from deltas, and written in pieces.

A text of 64 MiB comes in hundreds of thousands of parts. They are kept as they came, and nothing larger than one event
is ever joined or written in one go: whoever writes can let others take turns after each piece.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from relay.protocol.dialect import JsonObject, dump_json, parse_count
from relay.protocol.outcomes import Cause, StreamFailure

Value = Any
"""A JSON value that may be, or hold, a `Text`, an `Entries` or a `Grown`. Plain objects and lists have come in one
event, hold none of these, and are written in one go."""

_PIECE = 64 * 1024
# An object in a delta is merged member by member down to here, and is taken as it comes below.
_DEEPEST = 8
# Members that say what something is: they do not grow, however often an upstream sends them.
_LABELS = frozenset(("id", "type", "role", "name", "format", "index", "object", "status", "model", "signature"))


class Text:
    """A string in the parts in which it came."""

    __slots__ = ("parts",)

    def __init__(self, *parts: str) -> None:
        self.parts = list(parts)

    def add(self, part: str) -> None:
        if part:
            self.parts.append(part)

    def __bool__(self) -> bool:
        return any(self.parts)

    def __str__(self) -> str:
        return "".join(self.parts)

    def pieces(self) -> Iterator[bytes]:
        yield b'"'
        group: list[str] = []
        size = 0
        for part in self.parts:
            group.append(part)
            size += len(part)
            if size >= _PIECE:
                yield _inside("".join(group))
                group, size = [], 0
        yield _inside("".join(group))
        yield b'"'


class Base64(Text):
    """Bytes in base64, of parts that may each have padding of their own: one piece of base64 again."""

    __slots__ = ()

    def pieces(self) -> Iterator[bytes]:
        if not any(part.endswith("=") for part in self.parts[:-1]):
            yield from super().pieces()
            return
        try:
            checked = [base64.b64decode(part, validate=True) for part in self.parts]
        except ValueError:
            yield from super().pieces()
            return
        yield b'"'
        rest = b""
        for part in checked:
            rest += part
            whole = len(rest) // 3 * 3
            yield base64.b64encode(rest[:whole])
            rest = rest[whole:]
        yield base64.b64encode(rest) + b'"'


def _inside(text: str) -> bytes:
    """A string's JSON without its quotes. A pair of surrogates may be cut apart: JSON escapes each of them."""
    return _written(text)[1:-1]


class Grown(dict[str, Value]):
    """An object whose members have grown over many events."""

    __slots__ = ()


class Entries:
    """A list that grows: an entry with an `index` is merged into the one that has it, every other one is new."""

    __slots__ = ("_at", "rows")

    def __init__(self, rows: Iterable[Value] = ()) -> None:
        self.rows: list[Value] = list(rows)
        self._at: dict[int, Grown] = {}

    def extend(self, entries: list[Value], depth: int = 0) -> None:
        for entry in entries:
            index = parse_count(entry.get("index")) if isinstance(entry, dict) else None
            if index is None:
                self.rows.append(entry)
                continue
            held = self._at.get(index)
            if held is None or _differ(held, entry):
                held = self._at[index] = Grown()
                self.rows.append(held)
            merge(held, entry, depth)


def _differ(held: Grown, entry: JsonObject) -> bool:
    """Is it of another kind than the entry that has its index? Upstreams count kinds by themselves."""
    return "type" in held and entry.get("type") not in (None, held["type"])


def merge(into: Grown, delta: JsonObject, depth: int = 0) -> None:
    """Add a delta: strings are joined, lists grow, objects are merged, and the last one of all else counts. A null adds
    nothing but its name."""
    for key, value in delta.items():
        held = into.get(key)
        if isinstance(value, str):
            if key in _LABELS:
                into[key] = value or held or value
            elif isinstance(held, Text):
                held.add(value)
            else:
                into[key] = Text(value)
        elif value is None:
            into.setdefault(key, None)
        elif isinstance(value, dict) and depth < _DEEPEST:
            if not isinstance(held, Grown):
                held = into[key] = Grown()
            merge(held, value, depth + 1)
        elif isinstance(value, list) and depth < _DEEPEST:
            if not isinstance(held, Entries):
                held = into[key] = Entries()
            held.extend(value, depth + 1)
        else:
            into[key] = value


def pieces(value: Value) -> Iterator[bytes]:
    """Its JSON. Raises StreamFailure (upstream_malformed) for a value that is nested deeper than JSON is written."""
    if isinstance(value, Text):
        yield from value.pieces()
    elif isinstance(value, Grown):
        before = b"{"
        for key, member in value.items():
            yield before + _written(key) + b":"
            yield from pieces(member)
            before = b","
        yield b"}" if value else b"{}"
    elif isinstance(value, Entries):
        yield b"["
        for n, row in enumerate(value.rows):
            if n:
                yield b","
            yield from pieces(row)
        yield b"]"
    else:
        yield _written(value)


def _written(value: Value) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        try:
            return dump_json(value)
        except RecursionError:
            raise StreamFailure(
                Cause.UPSTREAM_MALFORMED, "The answer has a value that is nested too deeply. Read the stream's events."
            ) from None
