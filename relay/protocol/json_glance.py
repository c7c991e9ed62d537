"""What need not be looked at piece by piece: bodies in which one look at the bytes shows that they are within bounds,
and where the members stand that the relay reads.

Nothing here is guessed. Where the bytes alone do not show it, the answer is no, and `relay.protocol.json_scan` tells.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from relay.protocol.dialect import JsonObject
from relay.protocol.json_scan import DEPTH, Layout, Member

# Brackets, commas and colons, those in strings too. An array or an object has two of them, a member or a value one.
_STRUCTURE = 200_000
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"[]{},:")
# A body of this size cannot have more arrays and objects than a scan allows: each takes two bytes.
_FEW = 192 * 1024
# An ASCII letter, or `_`, spelled as an escape: without one a key of such letters is spelled in one way only.
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7][0-9a-fA-F]")
_AFTER_KEY = re.compile(
    rb"[ \t\r\n]*:([ \t\r\n]*(?:"
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|\{[^{}\[\]"]*+(?:"[^"\\]*+"[^{}\[\]"]*+)*+\}|[^\[{",}\s]++)[ \t\r\n]*)',
    re.DOTALL,
)


def is_small(text: bytes) -> bool:
    """Is it within the bounds of a scan, but for its depth, whatever in it is a string?"""
    return len(text) <= _FEW or len(text.translate(None, _NO_STRUCTURE)) <= _STRUCTURE


def is_deep(parsed: Any) -> bool:
    """Is it nested deeper than a scan allows?"""
    level = [parsed]
    for _ in range(DEPTH):
        level = [
            item
            for value in level
            for item in (value.values() if type(value) is dict else value)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return False
    return True


def layout_of(text: bytes, parsed: JsonObject, names: Collection[str], located: Collection[str]) -> Layout | None:
    """What a scan would tell of an object that was parsed, but for `members_in_all`: that no member of the `names` is
    there twice, and where those of the `located` names stand. None where only a scan can tell."""
    if b"\\u00" in text and _ESCAPED_LETTER.search(text):
        return None
    layout = Layout(end=text.rfind(b"}"), empty=not parsed)
    for name in names:
        if name not in parsed:
            continue
        # The key is spelled so somewhere. Where it is once, it is this one, and there is no other.
        spelled = b'"%b"' % name.encode()
        at = text.find(spelled)
        if at < 0 or text.find(spelled, at + 1) >= 0:
            return None
        if name in located:
            value = _AFTER_KEY.match(text, at + len(spelled))
            if value is None:
                return None
            layout.members.append(Member(name, value.start(1), value.end(1)))
    return layout
