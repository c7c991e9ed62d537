"""What answers hold for clients that have not taken it yet, and which client is let go where that is too much.

A client is looked at by what it takes, not by what it is sent. Promises:

- one that takes something, if only a little, within `limits.write_timeout` is not dropped for being slow;
- where all answers of a replica hold more than `BOUND`, those are ended that wait for their client, the one that has
  waited longest first, and of a connection that holds more than its share before all others. Who has taken `PACE`
  bytes, or all that there was, within `GRACE` seconds is not touched. Beyond twice the bound that is not asked: those
  who take go last even then, for their wait is the shortest;
- where the answers of a connection hold more than `SHARE`, its further requests wait until they hold less, and those
  answers are ended that wait longer than `GRACE`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from relay.http.acknowledged import queued

BOUND = 64 << 20
SHARE = 16 << 20
GRACE = 5.0
PACE = 1024
# So many are let go at a time, and the next ones after so long: each has an upstream's call to end.
AT_ONCE = 20
AGAIN = 0.02
# struct tcp_info of Linux: what the peer has acknowledged so far.
_BYTES_ACKED = (120, struct.Struct("=Q"))


class Waiting(NamedTuple):
    """An answer that cannot go on before its client takes something: `taken` is when it last did, `kept_pace` when it
    last took `PACE` bytes or all."""

    taken: float
    kept_pace: float
    let_go: Callable[[], None]


class Account:
    """Bytes that the answers of one connection hold, or those of a replica (`whole` is None)."""

    def __init__(self, bound: int, waiting: Callable[[], Sequence[Waiting]], whole: Account | None = None) -> None:
        """`waiting` tells which answers wait, in the order in which they are let go."""
        self.total = 0
        self.bound = bound
        self._waiting = waiting
        self._whole = whole
        self._look: asyncio.Handle | None = None
        self._parked: dict[int, asyncio.Future[None]] = {}

    def add(self, size: int) -> None:
        self.total += size
        if self.total > self.bound:
            self.look_soon()
        if (whole := self._whole) is not None:
            whole.total += size
            if whole.total > whole.bound:
                whole.look_soon()

    def remove(self, size: int) -> None:
        self.total -= size
        if self._parked:
            self._admit()
        if self._whole is not None:
            self._whole.total -= size

    @property
    def is_full(self) -> bool:
        return self.total > self.bound

    async def until_room(self, number: int) -> None:
        """Returns when the request of this number may begin, or `unpark` says so."""
        if not self.is_full:
            return
        self._parked[number] = asyncio.get_running_loop().create_future()
        await self._parked[number]
        self._admit()

    def unpark(self, number: int) -> None:
        parked = self._parked.pop(number, None)
        if parked is not None and not parked.done():
            parked.set_result(None)

    def _admit(self) -> None:
        if self._parked and not self.is_full:
            self.unpark(next(iter(self._parked)))

    def look_soon(self) -> None:
        if self._look is None:
            self._look = asyncio.get_running_loop().call_soon(self._relieve)

    def _relieve(self) -> None:
        self._look = None
        if not self.is_full:
            return
        loop = asyncio.get_running_loop()
        waiting = self._waiting()
        # One answer alone may be an event of any size.
        if self._whole is None or len(waiting) > 1:
            for answer in waiting[:AT_ONCE]:
                if not self.is_full:
                    break
                if loop.time() - answer.kept_pace >= GRACE or (self._whole is None and self.total > 2 * self.bound):
                    answer.let_go()
        if self.is_full:
            self._look = loop.call_later(AGAIN, self._relieve)


class Taking:
    """Since when a peer has taken nothing of what its connection holds for it, in this process and in the kernel. The
    kernel asks for more only once a third of its buffer, which may be megabytes, is free: before that only its own
    counts show that the peer takes anything."""

    def __init__(self, transport: asyncio.Transport, connection: socket.socket) -> None:
        self._transport = transport
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._seen: tuple[int, int] | None = None

    def since(self) -> float:
        now = self._loop.time()
        held = self._transport.get_write_buffer_size()
        if not held:
            self._since, self._seen = now, None
        elif (seen := self._counts(held)) != self._seen:
            self._since, self._seen = now, seen
        return self._since

    def _counts(self, held: int) -> tuple[int, int]:
        acked = 0
        with suppress(OSError):
            if hasattr(socket, "TCP_INFO"):
                at, number = _BYTES_ACKED
                told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, at + number.size)
                if len(told) == at + number.size:
                    (acked,) = number.unpack_from(told, at)
        return held + queued(self._socket), acked
