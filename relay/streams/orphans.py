"""The generations of this replica that a further request may join: what the store is told of them.

A client that was cut off sends its request again, mostly without a word about it. Its first generation, whose reader
went before the end was delivered, is an orphan: the next request that is the same joins it, on whatever replica.

Promises:

* What can be joined is noted under its session's name from before its POST on, and under its request's own name, where
  it has no session, from its reader's leaving on: so a request that is never cut off costs the store nothing there.
* The store hears of each reader that has gone, and of each that has come, in that order, also after it was away, or has
  lost what it had.
* What failed, was stopped or abandoned, or was read to its end can be joined no more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from enum import Enum, StrEnum, auto
from typing import Any, Literal

from relay.config import StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.protocol.outcomes import Ending, Outcome
from relay.store.directory import Directory, Noted
from relay.store.log import Log
from relay.streams.telling import finish

logger = logging.getLogger(__name__)

# How long the store may take to hear of a reader who has come back, before that one reads.
_TELLING = 0.25


class Came(Enum):
    """What tells a request that may be a retry."""

    PLAIN = auto()  # nothing
    SESSION = auto()  # a header of its session
    MARKED = auto()  # an SDK's count of retries


class Found(StrEnum):
    """What became of a generation of the same request; the names are those of `adopt.lua`."""

    UNMADE = "unmade"
    READ = "read"
    LOST = "lost"
    OVER = "over"
    TAKEN = "taken"


class Verdict(Enum):
    JOIN = auto()
    WAIT = auto()  # for a moment: its reader may have gone, and nobody have seen it yet
    NEW = auto()


RULES: dict[tuple[Came, Found], Verdict] = {
    **{(Came.PLAIN, found): Verdict.NEW for found in Found},
    **{
        (came, found): verdict
        for came in (Came.SESSION, Came.MARKED)
        for found, verdict in {
            Found.UNMADE: Verdict.WAIT,
            Found.READ: Verdict.WAIT,
            Found.LOST: Verdict.NEW,
            Found.OVER: Verdict.NEW,
            Found.TAKEN: Verdict.JOIN,
        }.items()
    },
}


def how_it_came(attach: Literal["auto", "marked", "off"], session: bytes | None, retries: int) -> Came:
    """By the setting, the session's header and the SDK's count."""
    if attach == "off":
        return Came.PLAIN
    if retries > 0 and (attach == "marked" or session is None):
        return Came.MARKED
    return Came.SESSION if session is not None and attach == "auto" else Came.PLAIN


class _Held:
    """One generation: `gone` counts how often this replica was left without a reader of it, `taken` up to which time
    one has come again. `told` is what the store knows of that, and whether it is noted."""

    __slots__ = ("always", "ended_at", "gone", "name", "noted", "over", "taken", "task", "told")

    def __init__(self, name: str, noted: Noted, always: bool) -> None:
        self.name = name
        self.noted = noted
        self.always = always
        self.gone = 0
        self.taken = 0
        self.over = False
        self.ended_at: float | None = None
        self.told: tuple[bool | None, int, int] = (False, 0, 0)
        self.task: asyncio.Task[None] | None = None

    @property
    def to_tell(self) -> tuple[bool, int, int]:
        return (not self.over and (self.always or self.gone > 0)), self.gone, self.taken


class Orphans:
    """One replica's. `readers` counts those of a stream here, `go_on` hears that a session has gone beyond a generation
    that runs here, `background` runs what nobody waits for."""

    def __init__(
        self,
        log: Log,
        replica: str,
        streams: StreamSettings,
        readers: Callable[[str], int],
        go_on: Callable[[str], None],
        background: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._log = log
        self._directory: Directory = log.directory
        self._replica = replica
        self._window = streams.attach_window
        self._readers = readers
        self._go_on = go_on
        self._background = background
        self._held: dict[str, _Held] = {}
        self._returns = 0  # of the store

    # -- what becomes of a generation ---------------------------------------------------------------------------

    def begin(self, stream: str, name: str, request: str, turns: list[str], others: list[Noted], always: bool) -> None:
        """A generation begins here. `name` is its session's, or where it has none its own request's; `turns` stand for
        its conversation (`prefix_digests`); `others` are what is noted of the session; `always`: it is to be noted at
        once."""
        noted = Noted(stream, request, len(turns), turns[-1] if turns else "", self._replica)
        held = self._held[stream] = _Held(name, noted, always)
        if not always:
            return
        for other in gone_beyond(request, turns, others):
            if other.replica == self._replica:
                self._go_on(other.stream)
            else:
                self._background(self._tell_of_going_on(other))
        self._tell(held)

    async def _tell_of_going_on(self, other: Noted) -> None:
        await self._directory.tell(other.replica, "beyond", other.stream)

    def fields(self, stream: str) -> dict[str, str]:
        """What is kept with the stream when it is made."""
        held = self._held.get(stream)
        return {} if held is None else {"orphan": str(held.gone), "taken": str(held.taken)}

    def knows(self, stream: str) -> bool:
        return stream in self._held

    def of(self, name: str) -> list[Noted]:
        """Those that have the name and run here, or did so a moment ago."""
        return [held.noted for held in self._held.values() if held.name == name and not held.over]

    def came(self, stream: str) -> None:
        """A reader has come that knew the stream's id."""
        held = self._held.get(stream)
        if held is not None and held.taken < held.gone:
            held.taken = held.gone
            self._tell(held)

    async def told_of(self, stream: str) -> None:
        """Returns when the store knows who reads a stream that runs here, or does not answer."""
        held = self._held.get(stream)
        if held is not None and held.task is not None:
            await asyncio.wait([held.task], timeout=_TELLING)

    def adopted(self, stream: str) -> None:
        """A request has joined it here; the store knows."""
        held = self._held.get(stream)
        if held is not None:
            held.taken = held.gone
            held.told = (held.told[0], held.told[1], held.taken)

    def left(self, stream: str, *, delivered: bool) -> None:
        """A reader here has gone, and has had the whole of it or not."""
        held = self._held.get(stream)
        if held is None or held.over:
            return
        if delivered:
            held.over = True
        elif not self._readers(stream) and held.gone == held.taken:
            held.gone += 1
        self._tell(held)

    def ended(self, stream: str, outcome: Outcome | None) -> None:
        """The generation is over; None where it never came to be, or nobody but its first reader could read it."""
        held = self._held.get(stream)
        if held is not None:
            held.ended_at = time.monotonic()
            if outcome is not Ending.COMPLETED:
                held.over = True
            else:
                asyncio.get_running_loop().call_later(self._window, self._expire, held)
            self._tell(held)

    def _expire(self, held: _Held) -> None:
        held.over = True
        self._tell(held)

    # -- what the store is told -----------------------------------------------------------------------------------

    def renew(self) -> None:
        """Tell the store what it has not been told. To be called with each renewal of the leases; returns at once."""
        for held in list(self._held.values()):
            self._tell(held)

    def store_returned(self) -> None:
        """It may have lost what it was told last."""
        self._returns += 1
        for held in self._held.values():
            held.told = (None, -1, -1)

    async def close(self) -> None:
        await finish(held.task for held in self._held.values())

    def _tell(self, held: _Held) -> None:
        if held.task is None and held.told != held.to_tell:
            held.task = asyncio.create_task(self._told(held))
        elif held.task is None and held.over:
            self._held.pop(held.noted.stream, None)

    async def _told(self, held: _Held) -> None:
        try:
            while held.told != (telling := held.to_tell):
                listed, gone, taken = telling
                returns = self._returns
                if (gone, taken) != held.told[1:]:
                    await self._log.orphaned(held.noted.stream, gone, taken)
                if listed != held.told[0]:
                    if listed:
                        await self._directory.note(held.name, held.noted)
                    else:
                        await self._directory.forget(held.name, held.noted.stream)
                if returns == self._returns:
                    held.told = telling
            if held.over:
                self._held.pop(held.noted.stream, None)
        except StoreUnavailable:
            logger.debug("stream %s: the store is to be told again who reads it", held.noted.stream)
        finally:
            held.task = None


def gone_beyond(request: str, digests: list[str], others: list[Noted]) -> list[Noted]:
    """Those of a session's generations whose whole conversation is the beginning of a request's own: the session has
    their answers, or does without. Another body is not enough: a title, or a sub-agent, is asked for in the same
    session while a retry of the main turn is still to come."""
    return [
        other
        for other in others
        if other.request != request and 0 < other.turns < len(digests) and digests[other.turns - 1] == other.messages
    ]
