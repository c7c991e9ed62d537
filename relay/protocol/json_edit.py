"""Members of a JSON object set in its own bytes: what is not set stays as it was written, to the last space.

Parsed and written anew, a number above 2^53 would be another one, and so would be what an upstream makes of a key that
stands there twice, of an escape, of `1.0`.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from relay.protocol.dialect import JsonObject
from relay.protocol.json_scan import Layout, Scanner

Parts = list[bytes | memoryview]
_SPACE = b" \t\r\n"
_LONGEST_OBJECT = 64 * 1024


class TooLong(Exception):
    """A member of this name is to be changed, and is longer than any that makes sense."""


def changes(old: JsonObject, new: JsonObject) -> JsonObject:
    """What of `new` is not what `old` has: its members and, in objects that both have, theirs (RFC 7396)."""
    found: JsonObject = {}
    for name, value in new.items():
        before = old.get(name)
        if before is value and name in old:
            continue
        found[name] = changes(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found


def edited(body: bytes, layout: Layout, patch: JsonObject) -> Parts:
    """The parts of an object's text with some members set. `layout` is a scan's of it, for all names of the patch; an
    object in the patch is set within the one that is there. Nothing of the body is copied. Raises TooLong."""
    if not patch:
        return [body]
    where = {member.name: member for member in layout.members}
    cuts: list[tuple[int, int, bytes]] = []
    added = b""
    for name, value in patch.items():
        member = where.get(name)
        if member is None:
            separator = b"" if layout.empty and not added else b","
            added += separator + _dump(name) + b":" + _dump(value)
        else:
            cuts.append((member.start, member.stop, _set(name, body, member.start, member.stop, value)))
    if added:
        cuts.append((layout.end, layout.end, added))
    parts: Parts = []
    at, view = 0, memoryview(body)
    for start, stop, text in sorted(cuts):
        parts += [view[at:start], text]
        at = stop
    parts.append(view[at:])
    return parts


def _set(name: str, body: bytes, start: int, stop: int, value: Any) -> bytes:
    """A member's value with the space around it."""
    old = body[start:stop]
    text = old.strip(_SPACE)
    if isinstance(value, dict) and text.startswith(b"{"):
        if len(text) > _LONGEST_OBJECT:
            raise TooLong(name)
        scanner = Scanner(value)
        scanner.feed(text)
        inner = b"".join(edited(text, scanner.finish(), value))
    else:
        inner = _dump(value)
    before = len(old) - len(old.lstrip(_SPACE))
    return old[:before] + inner + old[before + len(text) :]


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate
        return json.dumps(value).encode()
