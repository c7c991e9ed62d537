"""An event stream's bytes without their codings, on their way to who takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import httpx

from relay.protocol.codings import Broken, Decoder, sniffed


class Sink(Protocol):
    """Takes a body as it arrives. Neither may raise."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self, error: httpx.TransportError | None) -> None:
        """Nothing more comes: None at the body's proper end."""


def transport_error(error: BaseException) -> httpx.TransportError:
    kind = httpx.ReadTimeout if isinstance(error, TimeoutError) else httpx.ReadError
    found = kind(str(error))
    found.__cause__ = error
    return found


class Undone:
    """Takes the codings of an event stream off; None for those that its first bytes tell."""

    def __init__(self, decoders: list[Decoder] | None) -> None:
        self._decoders = decoders
        self._start = b""

    @property
    def plain(self) -> bool:
        """Is there nothing to take off?"""
        return self._decoders == []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises Broken."""
        if self._decoders is None:
            data = self._start + data
            coding = sniffed(data)
            if coding is None:
                self._start = data
                return
            self._start = b""
            self._decoders = [Decoder(coding)] if coding else []
        yield from _through(self._decoders, data)

    def rest(self) -> bytes:
        """What was held to be looked at, at the body's end."""
        rest, self._start = self._start, b""
        return rest


def _through(decoders: Sequence[Decoder], data: bytes) -> Iterator[bytes]:
    if not decoders:
        yield data
        return
    for piece in decoders[0].feed(data):
        yield from _through(decoders[1:], piece)


class Decoding:
    """A sink before another, for as long as it has something to take off: an event costs no more than without it."""

    def __init__(self, sink: Sink, decoders: list[Decoder] | None, hand_to: Callable[[Sink], None]) -> None:
        self._sink = sink
        self._undone = Undone(decoders)
        self._untouched = decoders is None
        self._hand_to = hand_to
        self._broken = False

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        if self._untouched:
            self._untouched = False
            if sniffed(data) == "":  # as a rule
                self._undone = Undone([])
                self._hand_to(self._sink)
                self._sink.data_received(data)
                return
        try:
            for piece in self._undone.feed(data):
                self._sink.data_received(piece)
        except Broken as error:
            self._broken = True
            self._sink.eof_received(transport_error(error))
            return
        if self._undone.plain:
            self._hand_to(self._sink)

    def eof_received(self, error: httpx.TransportError | None) -> None:
        if self._broken:
            return
        if rest := self._undone.rest():
            self._sink.data_received(rest)
        self._sink.eof_received(error)
