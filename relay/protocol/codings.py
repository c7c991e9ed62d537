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
_ZSTD = {int(zstd.DecompressionParameter.window_log_max): 23}


class Unknown(Exception):
    """There is no decoder for it."""


class Broken(Exception):
    """The bytes are not of the coding that they are said to have."""


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


def of_header(value: str | None) -> list[str]:
    """The codings that a `Content-Encoding` lists, the last applied first: so they are to be taken off."""
    listed = [item.strip().lower() for item in (value or "").split(",")]
    return [item for item in reversed(listed) if item not in ("", "identity")]


def sniffed(start: bytes) -> str | None:
    """The coding of bytes whose head does not tell one; "" where they have none, None where more must come to tell."""
    for magic, coding in _MAGIC.items():
        if start.startswith(magic):
            return coding
    return None if any(magic.startswith(start) for magic in _MAGIC) else ""


class Decoder:
    """Takes one coding off. Raises Unknown."""

    def __init__(self, coding: str) -> None:
        if coding not in _KINDS:
            raise Unknown(coding)
        self._make = _KINDS[coding]
        self._member: _Member | None = None
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


def decode(body: bytes, codings: list[str], limit: int) -> bytes | None:
    """The text of a body, None where it is larger than `limit` bytes with any coding taken off. Raises Unknown,
    Broken."""
    if len(codings) > _MOST_CODINGS:
        raise Unknown(", ".join(codings))
    for decoder in [Decoder(coding) for coding in codings]:
        pieces = []
        size = 0
        for piece in decoder.feed(body):
            size += len(piece)
            if size > limit:
                return None
            pieces.append(piece)
        if not decoder.whole:
            raise Broken("it ends too soon")
        body = b"".join(pieces)
    return body
