"""Events as the log keeps them: one in full, and of those that are like it only what differs.

The events of a stream share most of their bytes: the line of the id, which the entry's own id says already, and
everything around their text. Nothing is known here of any API: an event that was written in full may become the base of
later ones, which are written as the pieces that stand in the base's place of a few holes.

An entry in the compact form:

* the mark of what is encrypted (1 byte) and the name of no key (4), so that version 0.2 and those before it take it for
  what they lack the key of, which sends readers to another replica;
* the number of the base's event (4);
* the checksum (4) of what is taken from the base, and the number of holes (1);
* for each hole its distance from the end of the one before and its length, in the base, as varints;
* for each hole but the last the length of its piece, as a varint; the pieces.

Everything up to the pieces' lengths is the same for all that is written with one `_Template`, its `head`.

Promises: `Restorer` gives back what `Compactor` was given byte for byte, or raises; the work and the memory that an
event costs are bounded whatever an upstream sends.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Final

COMPACT: Final = b"\x01\0\0\0\0"
"""What an entry in the compact form begins with, before it is encrypted. An event in full begins with its id."""
BASE: Final = slice(5, 9)
"""Where it has the number of its base."""
_CHECKSUM = slice(9, 13)
_HOLES = 13
_AFTER = 14

# An event of more bytes is a base for none: a reader may have to be sent it before an event of a few bytes.
LARGEST_BASE: Final = 4096
_MOST_HOLES = 6
_MOST_TEMPLATES = 8
_MOST_BASES = 4
# A literal of fewer bytes costs as much as the hole that it would end.
_SHORTEST_LITERAL = 5
_LEAST_GAIN = 16
# To look for what two events have in common takes as long as to write some thirty, and up to 0.1 ms for each KiB of
# them. So many KiB are looked at in the beginning, and then one for so many events.
_KIB_AT_ONCE = 64
_EVENTS_FOR_A_KIB = 32
# Where little of an event is that of another, it is written in full, so that the next of its kind has more: so often at
# once, and then for one look in so many.
_IN_FULL_AT_ONCE = 4
_IN_FULL_EVERY = 4

# Strings of JSON, numbers, blanks and what is between them: what differs does so from one such border to another. A
# string that does not end goes on to the block's end: were it none, each of its quotes would be looked after anew.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|-?[0-9][0-9.eE+-]*+|\s++|[^"0-9\s]++|.', re.DOTALL)

_Holes = list[tuple[int, int]]


class Damaged(Exception):
    """An entry is not what a compactor has written, or its base is another event than the one it was written with."""


class BaseMissing(Exception):
    """The event `base` is needed first."""

    def __init__(self, base: int) -> None:
        super().__init__(f"event {base} is needed first")
        self.base = base


def base_of(content: bytes) -> int:
    """The number of the base of an entry in the compact form."""
    return int.from_bytes(content[BASE])


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of at most five bytes, and where it ends. Raises Damaged."""
    number = 0
    for place, byte in enumerate(content[at : at + 5]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise Damaged


def _literals(block: bytes, holes: _Holes) -> list[bytes]:
    """What is around the holes, one more than there are holes."""
    starts = [0, *(end for _, end in holes)]
    ends = [*(start for start, _ in holes), len(block)]
    return [block[start:end] for start, end in zip(starts, ends, strict=True)]


def _head(base: int, holes: _Holes, literals: Sequence[bytes]) -> bytes:
    parts = [COMPACT, base.to_bytes(4), zlib.crc32(b"".join(literals)).to_bytes(4), bytes((len(holes),))]
    before = 0
    for start, end in holes:
        parts += (_varint(start - before), _varint(end - start))
        before = end
    return b"".join(parts)


class _Template:
    """The literals of a base around its holes. `fixed` is how many bytes they have."""

    __slots__ = ("first", "fixed", "head", "last", "middle", "tail")

    def __init__(self, base: int, block: bytes, holes: _Holes) -> None:
        literals = _literals(block, holes)
        self.head = _head(base, holes, literals)
        self.first, *self.middle, self.last = literals
        self.tail = len(self.last)
        self.fixed = sum(map(len, literals))

    def write(self, frame: bytes, opening: bytes) -> bytes:
        """The entry of a frame that begins so; empty where it is no event of this kind."""
        begins = opening + self.first
        if not frame.startswith(begins) or not frame.endswith(self.last):
            return b""
        start = len(begins)
        stop = len(frame) - self.tail
        if not self.middle:
            return self.head + frame[start:stop] if start <= stop else b""
        lengths = []
        pieces = []
        for literal in self.middle:
            end = frame.find(literal, start, stop)
            if end < 0:
                return b""
            length = end - start
            lengths.append(_VARINTS[length] if length < 128 else _varint(length))
            pieces.append(frame[start:end])
            start = end + len(literal)
        return b"".join((self.head, *lengths, *pieces, frame[start:stop]))


_VARINTS = [bytes((number,)) for number in range(128)]


class Compactor:
    """Writes the entries of one stream, for one writer. It keeps up to `_MOST_TEMPLATES` templates of up to
    `LARGEST_BASE` bytes, and refers to up to `_MOST_BASES` frames, which its writer has anyway."""

    __slots__ = ("_bases", "_first", "_id", "_in_full", "_looked_at", "_looks", "_templates", "_usual")

    def __init__(self, stream: str) -> None:
        self._id = stream.encode() + b"."
        self._bases: list[tuple[int, bytes]] = []
        self._templates: list[_Template] = []
        self._usual: tuple[bytes, bytes, int, bytes] | None = None
        self._first = 0
        self._looked_at = 0
        self._looks = 0
        self._in_full = 0

    def write(self, n: int, frame: bytes) -> bytes:
        """What the log is to hold for event n: its frame, or less. Events come in their order, from any number on."""
        if self._usual is not None:
            # Nearly all events are such as the last one was, with one hole: what follows would say the same of them.
            first, last, fixed, head = self._usual
            begins = b"id: %b%d\n%b" % (self._id, n, first)
            if frame.startswith(begins) and frame.endswith(last):
                start, stop = len(begins), len(frame) - len(last)
                if start <= stop <= start + fixed:
                    return head + frame[start:stop]
        return self._write(n, frame)

    def _write(self, n: int, frame: bytes) -> bytes:
        templates = self._templates
        entry = b""
        opening = b"id: %b%d\n" % (self._id, n)
        if not frame.startswith(opening):
            return frame
        size = len(frame) - len(opening)
        for template in templates:
            if entry := template.write(frame, opening):
                if size <= 2 * template.fixed:
                    if template is not templates[0]:
                        templates.remove(template)
                        self._use(template)
                    return entry
                break
        self._first = self._first or n
        if size > LARGEST_BASE or n == 1:  # the first one alone has a pause in front
            return entry or frame
        if self._looked_at > _KIB_AT_ONCE + (n - self._first) // _EVENTS_FOR_A_KIB:
            return entry or frame
        return self._look(n, frame, opening, entry)

    def _use(self, template: _Template) -> None:
        """The one to try first."""
        self._templates.insert(0, template)
        del self._templates[_MOST_TEMPLATES:]
        usual = template.first, template.last, template.fixed, template.head
        self._usual = None if template.middle else usual

    def _look(self, n: int, frame: bytes, opening: bytes, entry: bytes) -> bytes:
        """Look for a better base than the one that `entry` was written with, if with any."""
        if self._bases:
            self._looks += 1
            self._looked_at += 1 + (len(frame) + sum(len(other) for _, other in self._bases)) // 1024
            template, alike = self._find(frame[len(opening) :])
            if alike or self._in_full >= self._looks // _IN_FULL_EVERY + _IN_FULL_AT_ONCE:
                better = template.write(frame, opening)
                if better and len(better) + _LEAST_GAIN <= len(entry or frame):
                    self._use(template)
                    return better
                if entry:
                    return entry
            else:
                self._in_full += 1
        self._bases.insert(0, (n, frame))
        del self._bases[_MOST_BASES:]
        return frame

    def _find(self, block: bytes) -> tuple[_Template, bool]:
        """What has most in common with a block, and whether that is enough: a quarter where it is built alike, a half
        else."""
        tokens = _TOKENS.findall(block)
        found: _Template | None = None
        kind = False
        for base, other in self._bases:
            theirs = other[other.index(b"\n") + 1 :]
            holes, alike = _differences(_TOKENS.findall(theirs), tokens)
            template = _Template(base, theirs, holes)
            alike = (4 if alike else 2) * template.fixed >= len(block)
            if found is None or (alike, template.fixed) > (kind, found.fixed):
                found, kind = template, alike
        assert found is not None
        return found, kind


def _differences(tokens: Sequence[bytes], others: Sequence[bytes]) -> tuple[_Holes, bool]:
    """The holes in the first for what the second has in their place, and whether they are built alike."""
    alike = len(tokens) == len(others)
    holes: _Holes = []
    if alike:
        at = 0
        for token, other in zip(tokens, others, strict=True):
            end = at + len(token)
            if token != other:
                quoted = _is_string(token) and _is_string(other)
                holes.append((at + quoted, end - quoted))
            at = end
        shortest = _SHORTEST_LITERAL
        while len(holes := _joined(holes, shortest)) > _MOST_HOLES:
            shortest *= 2
            alike = False
    else:
        most = min(len(tokens), len(others))
        before = next((i for i in range(most) if tokens[i] != others[i]), most)
        after = next((i for i in range(most - before) if tokens[-1 - i] != others[-1 - i]), most - before)
        stop = len(tokens) - after
        start = sum(map(len, tokens[:before]))
        holes = [(start, start + sum(map(len, tokens[before:stop])))]
    return holes or [(0, 0)], alike


def _is_string(token: bytes) -> bool:
    return len(token) > 1 and token[0] == token[-1] == 34  # "


def _joined(holes: _Holes, shortest: int) -> _Holes:
    """With one hole for two that have too little between them."""
    joined: _Holes = []
    for start, end in holes:
        if joined and start - joined[-1][1] < shortest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


class Restorer:
    """Restores the events of one stream. It keeps what it has taken from the last few bases."""

    __slots__ = ("_id", "_known", "_last")

    def __init__(self, stream: str) -> None:
        self._id = stream.encode() + b"."
        self._known: list[tuple[bytes, list[bytes]]] = []
        self._last: tuple[bytes, list[bytes]] = COMPACT, []

    @property
    def bases(self) -> list[int]:
        """Those that need not be looked up."""
        return [base_of(head) for head, _ in self._known]

    def restore_all(
        self, after: int, contents: Sequence[bytes], frames: list[bytes], frame_of: Callable[[int], bytes], room: int
    ) -> None:
        """Add to the frames of the events after one those that follow, of their entries in full or in the compact form:
        more than one only as far as they come to no more than `room`. Raises what `restore` does, after those before.
        """
        size = sum(map(len, frames))
        opening = b"id: " + self._id
        head = first = last = b""
        for n, content in enumerate(contents[len(frames) :], after + len(frames) + 1):
            if head and content.startswith(head):
                frame = b"%b%d\n%b%b%b" % (opening, n, first, content[len(head) :], last)
            elif content.startswith(COMPACT):
                frame = self.restore(n, content, frame_of)
                head, literals = self._last
                first, last, *more = literals
                if more:
                    head = b""
            else:
                frame = content
            size += len(frame)
            if frames and size > room:
                return
            frames.append(frame)

    def restore(self, n: int, content: bytes, frame_of: Callable[[int], bytes]) -> bytes:
        """The frame of event n, of its entry in the compact form. `frame_of` gives the frame of an earlier event, or
        raises. Raises Damaged."""
        for known in self._known:
            if content.startswith(known[0]):
                break
        else:
            known = self._learn(n, content, frame_of)
        self._last = head, literals = known
        at = len(head)
        if len(literals) == 2:
            first, last = literals
            return b"id: %b%d\n%b%b%b" % (self._id, n, first, content[at:], last)
        lengths = []
        for _ in range(len(literals) - 2):
            length, at = _read_varint(content, at)
            lengths.append(length)
        parts = [b"id: %b%d\n" % (self._id, n), literals[0]]
        for length, literal in zip(lengths, literals[1:-1], strict=True):
            parts += (content[at : at + length], literal)
            at += length
        if at > len(content):
            raise Damaged
        parts += (content[at:], literals[-1])
        return b"".join(parts)

    def _learn(self, n: int, content: bytes, frame_of: Callable[[int], bytes]) -> tuple[bytes, list[bytes]]:
        if len(content) < _AFTER or not 1 <= content[_HOLES] <= _MOST_HOLES:
            raise Damaged
        holes: _Holes = []
        at, end = _AFTER, 0
        for _ in range(content[_HOLES]):
            distance, at = _read_varint(content, at)
            length, at = _read_varint(content, at)
            start = end + distance
            end = start + length
            holes.append((start, end))
        base = base_of(content)
        if not 0 < base < n:
            raise Damaged
        frame = frame_of(base)
        literals = _literals(frame[frame.find(b"\n") + 1 :], holes)
        if zlib.crc32(b"".join(literals)) != int.from_bytes(content[_CHECKSUM]):
            raise Damaged
        learned = content[:at], literals
        self._known.insert(0, learned)
        del self._known[_MOST_TEMPLATES:]
        return learned
