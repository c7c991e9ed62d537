"""A JSON body as it comes: decoded, looked at and charged piece by piece, and parsed once it is known to be bounded.

Promises: nothing here holds up the loop for long, whatever is sent. The parser sees only what is within the bounds of
`relay.protocol.json_scan`, with the collector of garbage out of the way: what it makes is one tree without a circle,
and each of its passes would look through all of it.

What the standard library takes and orjson does not (NaN, lone surrogates, numbers without end, a byte order mark) goes
upstream as it is, for many upstreams take it; but it is slow to parse, so only from small bodies.
"""

from __future__ import annotations

import asyncio
import gc
import json
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
# A body up to this size is looked at once it is there. Many show at a glance that they are within bounds.
_AT_ONCE = 4 << 20
# Up to this size all of it takes no longer than the rest of its request, and it waits for no turn.
_NO_TURN = 16 * 1024
_STEP = 16 * 1024
# A few bytes may make much text, or many decoders.
_CODED_STEP = 4 * 1024
_STANDARD = 1 << 20
# What comes in smaller pieces is put together: an object of few bytes takes many times as much.
_SMALL = 4 * 1024


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
        elif self._size > _AT_ONCE:
            await self._scan_all()

    async def _scan_all(self) -> Scanner:
        scanner = self._scanner = Scanner(MEMBERS)
        for piece in list(self._pieces):
            await self._scan(scanner, piece)
        return scanner

    async def _scan(self, scanner: Scanner, piece: bytes) -> None:
        for at in range(0, len(piece), _STEP):
            async with self._bodies.turns:
                try:
                    scanner.feed(piece[at : at + _STEP])
                except Beyond as bound:
                    raise _refused(str(bound)) from None

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
            parsed = _parsed(raw)
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

    def _joined(self) -> bytes:
        if not self._size:
            return b""
        raw = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._charge.held > len(raw):
            self._charge.give_back(self._charge.held - len(raw))
        return raw

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
