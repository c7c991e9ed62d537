"""Which Idempotency-Key names which generation of this replica, from before its POST to its end.

Promises:

* While a generation runs, a second one under its key is impossible: the claim is in the store before anything goes
  upstream, and is asserted again as long as the generation runs, also in a store that came back empty.
* A key that nobody has, in a store that has only just come back, is no free key: whoever has it may be about to say so.
* A key whose generation failed, was stopped or abandoned, or never came to be is given back, however long the store is
  away; one whose answer is complete names it as long as its log is kept.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time

from relay.config import StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.protocol.outcomes import Ending, Outcome
from relay.store.directory import Claim, Directory
from relay.streams.telling import finish

logger = logging.getLogger(__name__)


class _Held:
    """A claim of this replica, and what the store is still to be told of it. `task` tells it."""

    __slots__ = ("claim", "completed", "ended_at", "task", "told")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.completed = False
        self.told = False  # of its end
        self.ended_at: float | None = None
        self.task: asyncio.Task[None] | None = None


class Claims:
    """The claims of one replica."""

    def __init__(self, directory: Directory, replica: str, streams: StreamSettings) -> None:
        self._directory = directory
        self._replica = replica
        self._settling = streams.lease
        self._kept = 2 * streams.lease  # longer than a store's replica lags
        self._longest = streams.max_duration + streams.retention
        self._held: dict[tuple[str, str], _Held] = {}  # by name and stream
        self._running: dict[str, _Held] = {}  # those of generations that are not over, by name

    async def claim(self, name: str, stream: str, digest: str) -> Claim:
        """Claim a name for a stream that is to be generated here. The claim that holds: the caller's own, or the one
        that came first. Raises StoreUnavailable where that cannot be known."""
        if (running := self._running.get(name)) is not None:
            return running.claim  # whatever the store has lost of it
        if self._just_returned(name):
            found = await self._directory.claim_of(name)
            if found is None:
                raise StoreUnavailable
            return found
        held = self._held[name, stream] = _Held(Claim(stream, digest, self._replica))
        try:
            found = await self._directory.claim(name, held.claim)
        except BaseException:
            self.ended(name, stream, None)  # its reply may be what was lost
            raise
        held.claim = dataclasses.replace(held.claim, at=found.at)
        if found.stream != stream:
            del self._held[name, stream]
        elif self._just_returned(name):  # it was away between the question and the answer
            self.ended(name, stream, None)
            raise StoreUnavailable
        else:
            self._running[name] = held
        return found

    def _just_returned(self, name: str) -> bool:
        return self._directory.returned_for(name) < self._settling

    def local(self, name: str, stream: str) -> Claim | None:
        """The claim of a generation that runs, or is about to run, on this replica."""
        held = self._held.get((name, stream))
        return None if held is None or held.ended_at is not None else held.claim

    def unlogged(self, name: str, stream: str) -> None:
        """The generation goes on without a log: nobody can join it, and nobody may generate again meanwhile."""
        held = self._held.get((name, stream))
        if held is not None and held.ended_at is None:
            held.claim = dataclasses.replace(held.claim, joinable=False)
            self._tell(name, held)

    def ended(self, name: str, stream: str, outcome: Outcome | None) -> None:
        """The generation is over; None where it never came to be. What nobody can read may be asked for again."""
        held = self._held.get((name, stream))
        if held is not None and held.ended_at is None:
            if self._running.get(name) is held:
                del self._running[name]
            held.ended_at = time.monotonic()
            held.completed = outcome is Ending.COMPLETED and held.claim.joinable
            self._tell(name, held)

    def given_up(self, name: str, stream: str) -> None:
        """The generation goes on, or may, on another replica: the claim is as good as it was, and is asserted by
        nobody."""
        held = self._held.pop((name, stream), None)
        if held is not None and self._running.get(name) is held:
            del self._running[name]

    def renew(self) -> None:
        """Assert all that is claimed again, and tell the store what it has not been told. To be called with each
        renewal of the leases, and when the store is back; returns at once."""
        for (name, stream), held in list(self._held.items()):
            if not held.told:
                self._tell(name, held)
            elif held.ended_at is not None and time.monotonic() > held.ended_at + self._kept:
                del self._held[name, stream]

    def store_returned(self) -> None:
        """It may have lost what it was told last."""
        for held in self._held.values():
            held.told = False

    async def close(self) -> None:
        await finish(held.task for held in self._held.values())

    def _tell(self, name: str, held: _Held) -> None:
        if held.task is None:
            held.task = asyncio.create_task(self._told(name, held))

    async def _told(self, name: str, held: _Held) -> None:
        """Tell the store what holds now, and again where that has changed meanwhile."""
        try:
            while True:
                claim, ended = held.claim, held.ended_at is not None
                if ended and not held.completed:
                    await self._directory.release(name, claim.stream)
                else:
                    found = await self._directory.claim(name, claim, completed=ended)
                    if found.stream != claim.stream:
                        logger.warning("stream %s: the store has lost its Idempotency-Key to another", claim.stream)
                if ended:
                    held.told = True
                    return
                if held.claim is claim and held.ended_at is None:
                    return
        except StoreUnavailable:
            if held.ended_at is not None and time.monotonic() > held.ended_at + self._longest:
                del self._held[name, held.claim.stream]  # it has expired there, too
        finally:
            held.task = None
