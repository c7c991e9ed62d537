"""Content codings (RFC 9110, section 8.4.1; RFC 8878), decoded as bytes arrive and in pieces of a bounded size.

Promises: no more is ever held than one piece and what was fed, however small a bomb is; a zstd frame whose window is
larger than 8 MiB is refused (RFC 9659); several gzip members or zstd frames are one text.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ACCEPTED = "zstd, gzip, identity"
"""For `Accept-Encoding`. `deflate` is taken, too, but not asked for: its senders disagree on what it is."""

PIECE = 64 * 1024
_MOST_CODINGS = 3
# Of a request's body: enough for 64 MiB in blocks of 64 KiB, as some tools write them.
_MOST_MEMBERS = 1024
_ZSTD = {int(zstd.DecompressionParameter.window_log_max): 23}


class Unknown(Exception):
    """There is no decoder for it."""


class Broken(Exception):
    """The bytes are not of the coding that they are said to have."""


class TooLarge(Exception):
    """There is more in it than is taken."""


class _Member(Protocol):
    """One gzip member, zlib stream or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflate:
    """zlib's decompressor, with the seam of zstd's. `wbits` is 0 where the first byte is to tell whether there is a
    head: some send `deflate` without one."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._zlib = zlib.decompressobj(wbits) if wbits else None
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib is not None and self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return b"" if self._zlib is None else self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._zlib is None:
            self._zlib = zlib.decompressobj(15 if data[0] & 0x0F == 8 else -15)
        found = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = len(found) < max_length and not self._zlib.unconsumed_tail
        return found


_KINDS: dict[str, Callable[[], _Member]] = {
    "gzip": lambda: _Inflate(31),
    "x-gzip": lambda: _Inflate(31),
    "deflate": lambda: _Inflate(0),
    "zstd": lambda: zstd.ZstdDecompressor(options=_ZSTD),
}
# What no text begins with.
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FIRST = frozenset(magic[0] for magic in _MAGIC)


def of_header(value: str | None) -> list[str]:
    """The codings that a `Content-Encoding` lists, the last applied first: so they are to be taken off."""
    if not value:
        return []
    listed = [item.strip().lower() for item in value.split(",")]
    return [item for item in reversed(listed) if item not in ("", "identity")]


# What servers write there that is none, and clients take for none.
_NONE = frozenset(("none", "utf-8", "utf8", "chunked", "7bit", "8bit", "binary", "text", "plain"))


def of_answer(value: str | None) -> list[str]:
    """The codings of an upstream's answer, without those words that are no coding's."""
    return [coding for coding in of_header(value) if coding not in _NONE]


def sniffed(start: bytes) -> str | None:
    """The coding of bytes whose head does not tell one; "" where they have none, None where more must come to tell."""
    if start and start[0] not in _FIRST:
        return ""
    for magic, coding in _MAGIC.items():
        if start.startswith(magic):
            return coding
    return None if any(magic.startswith(start) for magic in _MAGIC) else ""


class Decoder:
    """Takes one coding off; `most` bounds its members or frames, each of which costs a decoder. Raises Unknown."""

    def __init__(self, coding: str, most: int | None = None) -> None:
        if coding not in _KINDS:
            raise Unknown(coding)
        self._make = _KINDS[coding]
        self._member: _Member | None = None
        self._left = most
        self.begun = False

    @property
    def whole(self) -> bool:
        """May the text end here?"""
        return self.begun and self._member is None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pieces that some more bytes make. Raises Broken."""
        self.begun = self.begun or bool(data)
        while data:
            if self._member is None:
                if self._left is not None:
                    self._left -= 1
                    if self._left < 0:
                        raise Broken("it has too many parts")
                self._member = self._make()
            member = self._member
            try:
                while True:
                    piece = member.decompress(data, PIECE)
                    data = b""
                    if piece:
                        yield piece
                    if member.eof or member.needs_input:
                        break
            except (zlib.error, zstd.ZstdError, EOFError) as error:
                raise Broken(str(error)) from None
            if member.eof:
                data = member.unused_data
                self._member = None


class Layers:
    """Takes all codings off a body that may have `limit` bytes with any of them taken off. Raises Unknown."""

    def __init__(self, codings: list[str], limit: int) -> None:
        if len(codings) > _MOST_CODINGS:
            raise Unknown(", ".join(codings))
        self._decoders = [Decoder(coding, _MOST_MEMBERS) for coding in codings]
        self._sizes = [0 for _ in codings]
        self._limit = limit

    def feed(self, data: bytes, layer: int = 0) -> Iterator[bytes]:
        """The pieces of the text that some more bytes make. Raises Broken, TooLarge."""
        if layer == len(self._decoders):
            yield data
            return
        for piece in self._decoders[layer].feed(data):
            self._sizes[layer] += len(piece)
            if self._sizes[layer] > self._limit:
                raise TooLarge
            yield from self.feed(piece, layer + 1)

    def finish(self) -> None:
        """Raises Broken where the text cannot end here."""
        if not all(decoder.whole for decoder in self._decoders):
            raise Broken("it ends too soon")
