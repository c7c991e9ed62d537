"""Request bodies in flight: how much memory they may have together, and how much of the loop's time.

A body is charged from its first byte until an upstream has taken its last one, or it is refused. All of a replica's
share `limits.bodies`, one owner's half of it. Who finds no room is refused at once, before its body is read where its
length is known: a queue of bodies would be one more thing to fill, and SDKs come back by themselves.

Nobody holds room by sending slowly. Where room is short, bodies that come slower than `_SLOW` give theirs up, and so do
those that were sent and are kept for the case that they are to be sent again.

What is done with large bodies (decoding, looking at, parsing) takes turns: one piece of one body at a time, in no more
than half of the time, and a quarter after a long piece, so that streams go on between two pieces however many bodies
there are. Pieces are small, and the parser's bounds (`relay.protocol.json_scan`) are such that the largest of them, one
parse, takes less than 0.1 s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from weakref import ref

from relay.config import LimitSettings
from relay.protocol.errors import BodiesFull

# In bytes a second: a line of 512 kbit/s is faster.
_SLOW = 64 * 1024
# How long a body is given to show its pace, in seconds.
_GRACE = 5.0
_OWNERS_SHARE = 2
SLOW = "The request body comes too slowly, and its room is needed for others (limits.bodies)."
OF_ONE = "The request bodies of this credential in flight are as large as it may have (half of limits.bodies)."
# A turn's time is given back to the loop as far as turns were this much ahead of it, in seconds.
_AHEAD = 0.005
# An event takes a few turns of the loop: after a piece that took so long they come one after the other.
_LONG = 0.02


class Charge:
    """One body's place in the budget. It ends with `release`, at the latest when nobody has it any more."""

    def __init__(self, bodies: Bodies, identity: bytes) -> None:
        self._bodies = bodies
        self.identity = identity
        self.held = 0
        self.coming = True
        """Is there more of it to come?"""
        self.evicted = False
        self._spared: Callable[[], None] | None = None
        self._waited = 0.0
        self._since = 0.0
        self._clock: asyncio.Timeout | None = None

    def waits(self, clock: asyncio.Timeout) -> None:
        """The next bytes are waited for, until they `came` or the clock is put forward."""
        self._clock, self._since = clock, time.monotonic()

    def came(self) -> None:
        if self._clock is not None:
            self._clock = None
            self._waited += time.monotonic() - self._since

    @property
    def pace(self) -> float:
        """In bytes a second of those that its sender took; infinite while it is too early to say, and once all of it
        has come. What is spare has none."""
        if self._spared is not None:
            return 0.0
        waited = self._waited + (0.0 if self._clock is None else time.monotonic() - self._since)
        return self.held / waited if self.coming and waited > _GRACE else float("inf")

    def add(self, size: int) -> None:
        """Raises BodiesFull."""
        if self.evicted:
            raise BodiesFull(SLOW)
        self._bodies.take(self, size)

    def give_back(self, size: int) -> None:
        self._bodies.give(self, min(size, self.held))

    def release(self) -> None:
        """Once or more often."""
        if self.held:
            self._bodies.give(self, self.held)

    def spare(self, let_go: Callable[[], None]) -> None:
        """It has been sent, and is kept for the case that it is to be sent again: it gives way to any other, and then
        `let_go` is called."""
        self._spared = let_go

    def evict(self) -> None:
        """Its room is another's."""
        self.evicted = True
        self.release()
        if self._spared is not None:
            self._spared()
        if self._clock is not None:
            self._clock.reschedule(0.0)

    def __del__(self) -> None:
        self.release()


class Bodies:
    """One per replica. `limit` is the largest that one body may be."""

    def __init__(self, limits: LimitSettings) -> None:
        self.limit = limits.body
        self.turns = Turns()
        self.joining = asyncio.Lock()
        self._room = max(limits.bodies, 2 * limits.body)
        self._of_owner: dict[bytes, int] = {}
        self._share = max(self._room // _OWNERS_SHARE, 2 * limits.body)
        self._charged: dict[int, ref[Charge]] = {}  # by their ids: each is taken out before it ends
        self.held = 0

    def open(self, identity: bytes, length: int) -> Charge:
        """A place for a body of so many bytes, for all that is known. They are charged as they come. Raises
        BodiesFull."""
        charge = Charge(self, identity)
        self._make_room(charge, length)
        return charge

    def take(self, charge: Charge, size: int) -> None:
        self._make_room(charge, size)
        if not charge.held:
            self._charged[id(charge)] = ref(charge)
        charge.held += size
        self.held += size
        self._of_owner[charge.identity] = self._of_owner.get(charge.identity, 0) + size

    def give(self, charge: Charge, size: int) -> None:
        charge.held -= size
        self.held -= size
        self._of_owner[charge.identity] -= size
        if not self._of_owner[charge.identity]:
            del self._of_owner[charge.identity]
        if not charge.held:
            self._charged.pop(id(charge), None)

    def _make_room(self, charge: Charge, size: int) -> None:
        of_owner = self._of_owner.get(charge.identity, 0) + size
        if of_owner > self._share:
            others = [other for other in self._others() if other.identity == charge.identity]
            self._evict(charge, of_owner - self._share, others, BodiesFull(OF_ONE))
        if self.held + size > self._room:
            self._evict(charge, self.held + size - self._room, self._others(), BodiesFull())

    def _others(self) -> list[Charge]:
        return [other for known in list(self._charged.values()) if (other := known()) is not None]

    def _evict(self, charge: Charge, missing: int, others: list[Charge], refusal: BodiesFull) -> None:
        """Have the slowest of the others give up so much, where they can."""
        slow = sorted(
            (other for other in others if other is not charge and other.pace < _SLOW), key=lambda other: other.pace
        )
        if sum(other.held for other in slow) < missing:
            raise refusal
        for other in slow:
            if missing > 0:
                missing -= other.held
                other.evict()


class Turns:
    """`async with turns:` around a piece of work that does not wait."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._ahead_until = 0.0
        self._began = 0.0

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        try:
            wait = self._ahead_until - time.monotonic()
            if wait > _AHEAD:
                await asyncio.sleep(wait)
        except BaseException:
            self._lock.release()
            raise
        self._began = time.monotonic()

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        took = time.monotonic() - self._began
        self._ahead_until = max(self._ahead_until, self._began) + (2 if took < _LONG else 4) * took
        self._lock.release()
