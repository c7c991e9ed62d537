"""A JSON body as it comes: decoded, looked at and charged piece by piece, and parsed once it is known to be bounded.

Promises: nothing here holds up the loop for long, whatever is sent. The parser sees only what is within the bounds of
`relay.protocol.json_scan`, with the collector of garbage out of the way: what it makes is one tree without a circle,
and each of its passes would look through all of it.

Of a body of more than `READ_WHOLE` bytes the parser gets no long text: parsed in one piece, a picture of 31 MB in
base64 held up the loop for 33 ms and took as much memory again. What is left out is read by itself, piece by piece, so
that what is no JSON is refused all the same. Whoever asks with a key of the relay's has all of it read, for what it
says decides what it may do.

What the standard library takes and orjson does not (NaN, lone surrogates, numbers without end, a byte order mark) goes
upstream as it is, for many upstreams take it; but it is slow to parse, so only from small bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from itertools import chain
from typing import Any

import orjson

from relay.api.bodies import Bodies, Charge
from relay.protocol import codings
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import BadRequest, ContentTooLarge, UnsupportedContentEncoding
from relay.protocol.json_glance import is_deep, is_small, layout_of
from relay.protocol.json_scan import DEPTH, Beyond, Layout, Scanner, members_of

# What routing, the gate and the APIs read: no upstream may read another one of the same name.
MEMBERS = frozenset(
    (
        *("model", "models", "fallbacks", "fallback_models", "route", "provider"),
        *("stream", "stream_options", "stream_format", "n", "background", "store"),
        *("previous_response_id", "conversation"),
    )
)
# Those that the relay sets.
_SET = ("model", "stream_options")
READ_WHOLE = 4 << 20
"""A body up to this size is looked at once it is there, for many show at a glance that they are within bounds, and what
is parsed of it is all that it says."""
# A larger one is put together in a thread, for which the allocator keeps the memory; a smaller one takes 6 ms at most.
_JOINED_HERE = 16 << 20
# Up to this size all of it takes no longer than the rest of its request, and it waits for no turn.
_NO_TURN = 16 * 1024
_STEP = 16 * 1024
# A few bytes may make much text, or many decoders.
_CODED_STEP = 4 * 1024
_STANDARD = 1 << 20
# What comes in smaller pieces is put together: an object of few bytes takes many times as much.
_SMALL = 4 * 1024
# Of a piece that is text: its first bytes may be the rest of an escape (RFC 8259, section 7) or of a character.
_REST_OF_ESCAPE = 8
_LONGEST_CHARACTER = 4


def too_large(limit: int) -> ContentTooLarge:
    return ContentTooLarge(f"The request body is larger than limits.body ({limit} bytes). Send a smaller one.")


class JsonBody:
    """One body: `feed` it what comes, then `finish`. `listed` are its codings, the last applied first; `counted`: the
    members of all its objects are counted, and none may be there twice. Raises UnsupportedContentEncoding."""

    def __init__(self, bodies: Bodies, charge: Charge, listed: list[str], *, counted: bool) -> None:
        self._bodies = bodies
        self._charge = charge
        self._counted = counted
        self._scanner: Scanner | None = None
        self._pieces: list[bytes] = []
        self._rest = bytearray()  # comes after them
        self._size = 0
        self._left_out: list[tuple[int, int]] = []  # from where to where there is text that needs no parsing
        # A decoder's window may be as large as what it has made.
        self._factor = 1 + len(listed)
        try:
            self._layers = codings.Layers(listed, bodies.limit) if listed else None
        except codings.Unknown as coding:
            raise UnsupportedContentEncoding(
                f"The relay does not know the body's Content-Encoding {str(coding)[:100]!r}. Send it in one of those "
                "that Accept-Encoding lists, or without one.",
                headers={"accept-encoding": codings.ACCEPTED},
            ) from None

    async def feed(self, chunk: bytes) -> None:
        """Raises BadRequest, BodiesFull, ContentTooLarge."""
        if self._layers is not None:
            await self._decode(self._layers, chunk)
        else:
            await self._take(chunk)

    async def _decode(self, layers: codings.Layers, chunk: bytes) -> None:
        for at in range(0, len(chunk), _CODED_STEP):
            pieces = layers.feed(chunk[at : at + _CODED_STEP])
            more = True
            while more:
                async with self._bodies.turns:
                    try:
                        piece = next(pieces, None)
                    except codings.Broken as why:
                        raise _broken(why) from None
                    except codings.TooLarge:
                        raise too_large(self._bodies.limit) from None
                more = piece is not None
                if piece:
                    await self._take(piece)

    async def _take(self, piece: bytes) -> None:
        self._size += len(piece)
        self._charge.add(len(piece) * self._factor)
        if self._rest or (self._pieces and len(piece) < _SMALL):
            self._rest += piece
            if len(self._rest) < _STEP:
                return
            piece = self._gathered()
        await self._keep(piece)

    def _gathered(self) -> bytes:
        piece, self._rest = bytes(self._rest), bytearray()
        return piece

    async def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        if self._scanner is not None:
            await self._scan(self._scanner, piece)
        elif self._size > READ_WHOLE:
            await self._scan_all()

    async def _scan_all(self) -> Scanner:
        scanner = self._scanner = Scanner(MEMBERS)
        for piece in list(self._pieces):
            await self._scan(scanner, piece)
        return scanner

    async def _scan(self, scanner: Scanner, piece: bytes) -> None:
        for at in range(0, len(piece), _STEP):
            async with self._bodies.turns:
                part = piece[at : at + _STEP]
                try:
                    is_text = scanner.feed(part)
                except Beyond as bound:
                    raise _refused(str(bound)) from None
                if is_text and not self._counted and self._size > READ_WHOLE:
                    self._leave_out(part, scanner.at - len(part))

    def _leave_out(self, text: bytes, at: int) -> None:
        """A part of a string, but for the characters at its ends: where the rest of the string is text, so is all. What
        is short, such as a model's name, may lie in one part."""
        if len(text) < _SMALL:
            return
        begin, end = range(_REST_OF_ESCAPE, len(text)), range(len(text) - 1, 0, -1)
        start = next((i for i in begin[:_LONGEST_CHARACTER] if _begins_character(text[i])), 0)
        stop = next((i for i in end[:_LONGEST_CHARACTER] if _begins_character(text[i])), 0)
        if not 0 < start < stop:
            return
        try:
            orjson.loads(b'"%b"' % text[start:stop])
        except orjson.JSONDecodeError:
            return  # the parser is to see it, and to refuse it
        self._left_out.append((at + start, at + stop))

    async def finish(self, *, empty: bool) -> tuple[bytes, JsonObject, Layout]:
        """The body without its codings, what it says, and where that stands in it. With `empty`, no body stands for
        `{}`. Raises BadRequest."""
        try:
            if self._layers is not None:
                self._layers.finish()
        except codings.Broken as why:
            raise _broken(why) from None
        if self._rest:
            await self._keep(self._gathered())
        if empty and not self._size:
            return b"", {}, Layout(end=0)
        if self._size <= _NO_TURN:
            raw = self._joined()
            glanced = self._glance(raw)
        else:
            if self._size > _JOINED_HERE:
                raw = await self._joined_beside()
            else:
                async with self._bodies.turns:
                    raw = self._joined()
            async with self._bodies.turns:
                glanced = self._glance(raw) if self._scanner is None else None
        if glanced is not None:
            return raw, *glanced
        if self._scanner is None:
            self._pieces.append(raw)
            await self._scan_all()
            self._pieces.clear()
        assert self._scanner is not None
        layout = self._scanner.finish()
        async with self._bodies.turns:
            parsed = self._parsed(raw, layout)
        if (name := layout.repeated()) is not None:
            raise BadRequest(
                f"The request body has the member {name!r} twice: an upstream may read the other one. Send it once.",
                code="invalid_json",
            )
        if self._counted:
            async with self._bodies.turns:
                there = members_of(parsed)
            if layout.members_in_all != there:
                raise BadRequest(
                    "An object in the request body has a member twice, and with a key of the relay's each stands for "
                    "what was checked. Send each member once.",
                    code="invalid_json",
                )
            await asyncio.sleep(0)  # what it names is looked at next, in steps
        return raw, parsed, layout

    def _glance(self, raw: bytes) -> tuple[JsonObject, Layout] | None:
        """What it says and where, unless that takes a closer look."""
        if self._counted or not is_small(raw):
            return None
        parsed = _parsed(raw)
        if raw.count(b"[") + raw.count(b"{") > DEPTH and is_deep(parsed):
            raise _refused(f"it is nested more than {DEPTH} levels deep")
        layout = layout_of(raw, parsed, MEMBERS, _SET)
        return None if layout is None else (parsed, layout)

    def _parsed(self, raw: bytes, layout: Layout) -> JsonObject:
        """What it says, but for the text that is left out: none where a member of those that are read is long."""
        if self._left_out and all(member.stop - member.start < _SMALL for member in layout.members):
            view = memoryview(raw)
            edges = [0, *chain.from_iterable(self._left_out), len(raw)]
            with contextlib.suppress(BadRequest):  # which is to be told in terms of the whole body
                return _parsed(b"".join(view[i:j] for i, j in zip(edges[::2], edges[1::2], strict=True)))
        return _parsed(raw)

    def _joined(self) -> bytes:
        if not self._size:
            return b""
        raw = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._charge.held > len(raw):
            self._charge.give_back(self._charge.held - len(raw))
        return raw

    async def _joined_beside(self) -> bytes:
        """In a thread, which leaves the interpreter to the loop while it copies; one body at a time, for meanwhile it
        is held twice. In no turn: where all threads are busy, every other body would wait for one of them, too."""
        async with self._bodies.joining:
            raw = await asyncio.to_thread(b"".join, self._pieces)
            self._pieces = [raw]
            return self._joined()

    def let_go(self) -> None:
        """It is refused: an exception would hold it for as long as its answer takes."""
        self._pieces.clear()
        self._rest.clear()
        self._charge.release()


def _broken(why: codings.Broken) -> BadRequest:
    return BadRequest(
        f"The request body is not what its Content-Encoding says ({why}). Send all of it, or without one."
    )


def _refused(why: str) -> BadRequest:
    return BadRequest(f"The relay does not take this JSON: {why}. Send a plainer one.", code="invalid_json")


def _begins_character(byte: int) -> bool:
    """In UTF-8."""
    return byte & 0xC0 != 0x80


def _parsed(raw: bytes) -> JsonObject:
    parsed = _loads(raw)
    if not isinstance(parsed, dict):
        raise BadRequest("The request body is not a JSON object. Send one.", code="invalid_json")
    return parsed


def _loads(raw: bytes) -> Any:
    collects = len(raw) > _NO_TURN and gc.isenabled()
    if collects:
        gc.disable()
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if len(raw) <= _STANDARD:
            try:
                return json.loads(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                pass
        raise BadRequest(f"The request body is not JSON ({error}). Send a JSON object.", code="invalid_json") from None
    finally:
        if collects:
            gc.enable()
