"""JSON (RFC 8259) looked at as it arrives, before anything parses it: is it within bounds, and where do the members
stand that the relay may have to change?

Promises: a piece of 16 KiB takes a few milliseconds at most, whatever is in it, and nothing of it is kept but a key
that is not at its end; what is beyond a bound is told in the piece in which it is. It says nothing of the grammar: that
is the parser's, which may now be asked, since what it makes of a text within these bounds takes a bounded time and
memory.

It looks at no byte twice in Python: strings are cut out of a piece by one regular expression, and what is left is
counted. Only where a piece touches the top of the document its tokens are gone through one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

DEPTH = 128
"""How deep arrays and objects may be nested. Schemas of tools have about 20 levels."""
VALUES = 500_000
"""How many values a document may have: 300,000 tokens are the most that an API of embeddings takes at once."""
CONTAINERS = 100_000
"""How many of these may be arrays and objects. A conversation of 5 MiB has about 30,000."""
MEMBERS = 100_000
"""How many members all its objects may have together."""
LONGEST_KEY = 1024
"""Keys above this size are none that anybody looks for."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# At the top of a document; a string may have no end in this piece.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}:,]', re.DOTALL)
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)*+([\[\]{}]?)', re.DOTALL)
_STEPS = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Beyond(Exception):
    """A bound is passed; the text says which one and how much is allowed."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the document's own object: its name as it reads, and from where to where its value stands, with
    the white space around it."""

    name: str
    start: int
    stop: int


@dataclass(slots=True)
class Layout:
    """Where things are in a document that is an object: its members of the names that were asked for, in their order,
    and where its end stands, -1 where it has none. `members_in_all` counts those of all its objects."""

    members: list[Member] = field(default_factory=list)
    end: int = -1
    empty: bool = True
    members_in_all: int = 0

    def repeated(self) -> str | None:
        """A name that two members have, of which an upstream may read either."""
        seen: set[str] = set()
        for member in self.members:
            if member.name in seen:
                return member.name
            seen.add(member.name)
        return None


class Scanner:
    """Feed it a document from its beginning. `names`, in lower case, are the members to note: in any spelling of a JSON
    string, in upper or lower case."""

    def __init__(self, names: Collection[str] = ()) -> None:
        self.layout = Layout()
        self._names = frozenset(names)
        self._longest = 6 * max(map(len, self._names), default=0)
        self.at = 0
        """So many bytes were fed."""
        self._in_string = False
        self._held = b""  # of the last piece, what can only be read with the next one
        self._depth = 0
        self._containers = 0
        self._commas = 0
        self._members = 0
        self._strings = 0  # not below the top of the document
        self._is_object: bool | None = None
        self._key = ""
        self._colon = -1

    def feed(self, data: bytes) -> bool:
        """Is all of it the text of one string, without a backslash? Raises Beyond."""
        if self._in_string and not self._held and b'"' not in data and b"\\" not in data:
            self.at += len(data)
            return True
        begun = b'"' if self._in_string else b""
        text = begun + self._held + data
        start = self.at - len(self._held) - len(begun)
        self.at += len(data)
        # A backslash without what it escapes. Where the quote at the end closes a string, the piece ends within it.
        odd = (len(text) - len(text.rstrip(b"\\"))) & 1
        self._held = text[len(text) - odd :]
        left = _STRING.sub(b"", text[: len(text) - odd] + b'"')
        self._in_string = not left.endswith(b'"')
        self._commas += left.count(b",")
        self._members += left.count(b":")
        opened = left.count(b"[") + left.count(b"{")
        closed = left.count(b"]") + left.count(b"}")
        self._containers += opened
        lowest = highest = self._depth
        if opened or closed:
            levels = memoryview(left.translate(_STEPS, _NO_BRACKETS)).cast("b")
            if self._depth + opened > DEPTH or self._depth - closed < 2:
                reached = list(accumulate(levels, initial=self._depth))
                lowest, highest = min(reached), max(reached)
        self._check(highest)
        if lowest < 2 and self._is_object is not False:
            self._walk(text[: len(text) - odd] if odd else text, start, len(begun))
        self._depth += opened - closed
        return False

    def _check(self, highest: int) -> None:
        if highest > DEPTH:
            raise Beyond(f"it is nested more than {DEPTH} levels deep")
        if self._containers > CONTAINERS:
            raise Beyond(f"it has more than {CONTAINERS:,} arrays and objects")
        if self._members > MEMBERS:
            raise Beyond(f"its objects have more than {MEMBERS:,} members")
        if self._commas + self._containers > VALUES:
            raise Beyond(f"it has more than {VALUES:,} values")

    def _walk(self, text: bytes, start: int, begun: int) -> None:
        """Token by token where the depth is 0 or 1, from bracket to bracket below. `begun` is 1 where the first token
        is the rest of a string."""
        depth, at, layout = self._depth, 0, self.layout
        while True:
            if depth > 1:
                found = _TO_BRACKET.match(text, at)
                if found is None or not found[1]:
                    return
                at = found.end()
                depth += 1 if found[1] in b"[{" else -1
                continue
            token = _TOKEN.search(text, at)
            if token is None:
                return
            at = token.end()
            kind = text[token.start() : token.start() + 1]
            if kind == b'"':
                if depth == 1 and self._is_object and self._colon < 0:
                    if self._in_string and at == len(text):
                        self._hold(text[token.start() :])
                        return
                    self._key = self._named(token[0]) if token.start() >= begun else ""
                self._strings += token.start() >= begun
                # One behind the other, with neither comma nor colon, they are no JSON and within all other bounds.
                if self._strings > 2 * MEMBERS:
                    raise Beyond(f"it has more than {2 * MEMBERS:,} strings at its top")
            elif depth == 1 and kind == b":":
                self._colon = start + token.start() if self._colon < 0 else self._colon
            elif kind in b"[{":
                if self._is_object is None:
                    self._is_object = kind == b"{"
                    if not self._is_object:
                        return
                depth += 1
            elif depth == 1:  # a comma or an end
                self._end_member(start + token.start())
                if kind != b",":
                    depth -= 1
                    layout.end = start + token.start() if layout.end < 0 else -1
            elif kind in b"]}":
                depth -= 1

    def _hold(self, key: bytes) -> None:
        """A key goes on in the next piece."""
        if len(key) + len(self._held) <= LONGEST_KEY:
            self._held = key + self._held
            self._in_string = False
        else:
            self._key = ""

    def _named(self, string: bytes) -> str:
        """The name that a key is, where it is one of those asked for."""
        if len(string) > self._longest + 2:
            return ""
        try:
            name: str = json.loads(string) if b"\\" in string else string[1:-1].decode()
        except ValueError:
            return ""
        return name if name.casefold() in self._names else ""

    def _end_member(self, stop: int) -> None:
        if self._colon >= 0:
            self.layout.empty = False
            if self._key:
                self.layout.members.append(Member(self._key, self._colon + 1, stop))
        self._key, self._colon = "", -1

    def finish(self) -> Layout:
        """What there was, once all of it was fed."""
        self.layout.members_in_all = self._members
        return self.layout


def members_of(parsed: Any) -> int:
    """How many members all objects have together. A text that had more of them has one twice in some object."""
    found, left = 0, [parsed]
    while left:
        value = left.pop()
        if type(value) is dict:
            found += len(value)
            value = value.values()
        left += [item for item in value if type(item) is dict or type(item) is list]
    return found
