"""A body that something on the way has compressed, though the relay had not: gzip and deflate, in bounded pieces."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

_PIECE = 65_536
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class DecodingError(Exception):
    """The bytes are not of the encoding that the answer named."""


def encoding_of(headers: Mapping[str, str]) -> str:
    """The content coding of a response's body (RFC 9110, section 8.4); `identity` where there is none."""
    return headers.get("content-encoding", "identity").strip().lower()


def can_decode(encoding: str) -> bool:
    """Is it one that `Decoder` takes? Of several, applied one after another, none is."""
    return encoding == "identity" or encoding in _WINDOWS


class Decoder:
    """Decodes the body of one response, of the content coding `encoding`."""

    def __init__(self, encoding: str) -> None:
        self._window = _WINDOWS.get(encoding)
        self._inflate = None if self._window is None else zlib.decompressobj(self._window)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes amount to, in pieces of at most 64 KiB, whatever they inflate to.

        Raises DecodingError where the bytes are not of the encoding.
        """
        if self._window is None or self._inflate is None:
            yield data
            return
        try:
            while data:
                if self._inflate.eof:
                    self._inflate = zlib.decompressobj(self._window)
                if found := self._inflate.decompress(data, _PIECE):
                    yield found
                data = self._inflate.unconsumed_tail or self._inflate.unused_data
        except zlib.error as error:
            raise DecodingError from error
