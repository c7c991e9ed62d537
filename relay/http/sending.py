"""What is to be sent on the streams of one HTTP/2 connection, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, BufferCompleteError
from priority.priority import DeadlockError, MissingStreamError

from relay.http.unsent import PACE, Account

# What is larger than this is sent from where it is.
_LARGE = 8 * 1024
_NOTHING = memoryview(b"")


class Turns:
    """Who may send next: those with something to send, one after the other. The priorities that clients may give
    are not followed (RFC 9113, section 5.3.2, deprecates them)."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._ready: dict[int, None] = {}

    def __next__(self) -> int:
        for stream in self._ready:
            del self._ready[stream]
            self._ready[stream] = None
            return stream
        raise DeadlockError("no stream has anything to send")

    def insert_stream(self, stream: int) -> None:
        self._known.add(stream)
        self._ready[stream] = None

    def remove_stream(self, stream: int) -> None:
        self._known.discard(stream)
        self._ready.pop(stream, None)

    def block(self, stream: int) -> None:
        self._ready.pop(stream, None)

    def unblock(self, stream: int) -> None:
        if stream not in self._known:
            raise MissingStreamError(f"stream {stream} is over")
        self._ready.setdefault(stream)


class Buffer:
    """What waits to be sent on one stream. Who adds to it waits until little of it is left; what is large is not
    copied.

    `taken` and `kept_pace` are those of `Waiting`.
    """

    def __init__(self, account: Account, wake: Callable[[], Awaitable[None]]) -> None:
        self.taken = self.kept_pace = 0.0
        self._small = bytearray()
        self._large = _NOTHING  # comes after it
        self._account = account
        self._wake = wake
        self._held = 0
        self._since_pace = 0
        self._complete = self._closed = False
        self._room, self._empty = asyncio.Event(), asyncio.Event()
        self._now = asyncio.get_running_loop().time

    @property
    def held(self) -> int:
        """So many bytes wait."""
        return self._held

    @property
    def complete(self) -> bool:
        return self._complete and not self._held

    def set_complete(self) -> None:
        self._complete = True

    async def push(self, data: bytes) -> None:
        """To be awaited before the next. Raises BufferCompleteError where the stream is over."""
        if self._complete:
            raise BufferCompleteError
        size = len(data)
        if not self._held:
            self.taken = self.kept_pace = self._now()
            self._since_pace = 0
            self._empty.clear()
        self._held += size
        self._account.add(size)
        if size > _LARGE:
            self._large = memoryview(data)
        else:
            self._small += data
        await self._wake()
        if self._large or len(self._small) >= BUFFER_HIGH_WATER:
            self._room.clear()
            await self._room.wait()
            if self._closed:
                raise BufferCompleteError

    def pop(self, most: int) -> bytes:
        if self._small:
            data = bytes(self._small[:most])
            del self._small[:most]
        else:
            data = bytes(self._large[:most])
            self._large = self._large[most:] or _NOTHING
        if size := len(data):
            self._held -= size
            self._account.remove(size)
            if not self._held:
                self._room.set()
                self._empty.set()
                return data
            self.taken = self._now()
            self._since_pace += size
            if self._since_pace >= PACE:
                self.kept_pace = self.taken
                self._since_pace = 0
            if len(self._small) < BUFFER_LOW_WATER and not self._large:
                self._room.set()
        return data

    async def drain(self) -> None:
        if self._held:
            await self._empty.wait()

    def close(self) -> None:
        """Nothing more is sent: who waits goes on, and what was to be sent is let go."""
        self._complete = self._closed = True
        self._account.remove(self._held)
        self._held = 0
        self._small, self._large = bytearray(), _NOTHING
        self._room.set()
        self._empty.set()
