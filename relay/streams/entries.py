"""What a writer's log is to hold for its events: their frames, compact and encrypted as the settings have it.

The first few events are written as they are: to look for what they share costs a stream that ends with them more than
it saves.

Promise: with one encryptor an event is written once. What is written again, after a reply that never came or a loss of
the store's, is written with another one, and after nothing that may not be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relay.encryption import Binding, Encryptor
from relay.protocol.compact import Compactor
from relay.protocol.end_mark import End
from relay.store.log import Log

IN_FULL: Final = 4


class EntryWriter:
    """Of one stream, whose first events, so many, are `in_full`."""

    __slots__ = ("_binding", "_compactor", "_encryptor", "_few", "_in_full", "_log", "_next", "_stream")

    def __init__(self, log: Log, stream: str, binding: Binding, *, in_full: int = IN_FULL) -> None:
        self._log = log
        self._stream = stream
        self._binding = binding
        self._next = 0
        self._in_full = in_full
        self._few = 0  # the last event of the first few
        self._compactor: Compactor | None = None
        self._encryptor: Encryptor | None = None

    def forget(self) -> None:
        """The log holds something else than what was written last."""
        self._next = 0

    def event(self, n: int, frame: bytes) -> bytes:
        """The entry of event n."""
        if n != self._next:
            self._begin(n)
        self._next = n + 1
        if self._compactor is None and n > self._few and self._log.store.compact:
            self._compactor = Compactor(self._stream)
        entry = frame if self._compactor is None else self._compactor.write(n, frame)
        return entry if self._encryptor is None else self._encryptor.event(n, entry)

    def events(self, first: int, frames: Sequence[bytes]) -> list[bytes]:
        """The entries of the events from number `first` on."""
        return [self.event(n, frame) for n, frame in enumerate(frames, first)]

    def end(self, n: int, end: End, usage: str) -> tuple[str, bytes]:
        """The usage that the stream's hash has, and what the log's end mark after event n holds."""
        if n + 1 != self._next:
            self._begin(n + 1)
        content = end.encode()
        return (usage, content) if self._encryptor is None else ("", self._encryptor.end(n, content, usage))

    def _begin(self, first: int) -> None:
        self._few = first + self._in_full - 1
        self._compactor = None
        self._encryptor = self._log.cipher.encryptor(self._stream, self._binding)
