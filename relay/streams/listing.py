"""The streams of this replica in their owners' lists, so that an owner finds them without their ids.

Promises: a stream that has a name is listed before its client is given it, and while its request still waits for its
answer, where the store answers; what the store has lost of that is said again as long as the stream runs; what came to
be no stream leaves the list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from relay.auth.owners import Owners, Use
from relay.protocol.errors import ApiError, StoreUnavailable
from relay.store.commands import Sent
from relay.store.listings import Listed, Listings
from relay.store.log import Log, Status
from relay.streams.lookup import Lookup

if TYPE_CHECKING:
    from relay.streams.producer import Producer

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.1


class _Held:
    """An entry of this replica's: has the store been `told` of it?"""

    __slots__ = ("listed", "named", "task", "told")

    def __init__(self, listed: Listed) -> None:
        self.listed = listed
        self.named = listed.digest != ""
        self.told = False
        self.task: asyncio.Task[None] | None = None


class Listing:
    """One per replica; `local` gives a producer that is, or is about to be, here by its stream."""

    def __init__(
        self,
        listings: Listings,
        replica: str,
        log: Log,
        owners: Owners,
        lookup: Lookup,
        local: Callable[[str], Producer | None],
        later: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._listings = listings
        self._replica = replica
        self._log = log
        self._owners = owners
        self._lookup = lookup
        self._local = local
        self._later = later
        self._held: dict[Producer, _Held] = {}

    # -- this replica's streams -------------------------------------------------------------------------------

    def begin(self, producer: Producer, name: str) -> None:
        """A generation begins whose owner can come back; `name` is empty where its stream has none."""
        owner = producer.owner
        digest = self._digest(owner, name) if name else ""
        held = _Held(self._listings.entry(owner, producer.stream, self._replica, digest, name))
        self._held[producer] = held
        if held.named:
            held.task = self._later(self._tell(producer, held))

    def _digest(self, owner: str, name: str) -> str:
        return self._owners.digest(Use.NAME, owner.encode(), name.encode())[:32]

    def put(self, producer: Producer) -> asyncio.Future[Any] | None:
        """Where the stream is made: it is listed, or the store does not answer, once this is done; None where it is
        listed already. What has to be said for that is on its way when this returns."""
        held = self._held.get(producer)
        if held is None or held.told:
            return None
        if held.named:  # its client may come by it
            return self._later(self._told(producer, held))
        sent = self._listings.put(producer.owner, held.listed)
        sent.first.add_done_callback(partial(self._was_put, producer, held, sent))
        return sent.first

    async def _told(self, producer: Producer, held: _Held) -> None:
        if held.task is not None and not held.task.done():
            await asyncio.shield(held.task)
        if not held.told:
            await self._tell(producer, held)

    def _was_put(self, producer: Producer, held: _Held, sent: Sent, first: asyncio.Future[Any]) -> None:
        if not first.cancelled() and first.exception() is None:
            self._answered(producer, held, first.result())
        elif self._held.get(producer) is held:
            held.task = self._later(self._tell(producer, held, sent))

    async def _tell(self, producer: Producer, held: _Held, sent: Sent | None = None) -> None:
        self._answered(producer, held, await (sent or self._listings.put(producer.owner, held.listed)))

    def _answered(self, producer: Producer, held: _Held, at: bytes) -> None:
        listed = held.listed  # `dataclasses.replace` makes 45 calls
        held.listed = Listed(listed.stream, listed.replica, listed.digest, listed.entry, int(at))
        if self._held.get(producer) is held:
            held.told = True
        elif not _is_made(producer):  # it has ended meanwhile, and never was a stream
            self._later(self._listings.remove(producer.owner, held.listed))

    def ended(self, producer: Producer) -> None:
        held = self._held.pop(producer, None)
        if held is not None and held.told and not _is_made(producer):
            self._later(self._listings.remove(producer.owner, held.listed))

    def store_returned(self) -> None:
        """It may have lost what it was told."""
        for held in self._held.values():
            held.told = False

    def renew(self) -> None:
        """Say again what the store may not know of streams that are made, or have a name."""
        for producer, held in self._held.items():
            busy = held.task is not None and not held.task.done()
            if not held.told and not busy and (held.named or producer.created.done()):
                held.task = self._later(self._tell(producer, held))

    # -- whoever asks -----------------------------------------------------------------------------------------

    async def of(self, owner: str, name: str | None = None) -> list[tuple[Listed, str | None]]:
        """An owner's streams, or those with a name, the newest first, each with its name. Raises StoreUnavailable."""
        wanted = None if name is None else self._digest(owner, name)
        found = [listed for listed in await self._listings.of(owner) if wanted in (None, listed.digest)]
        return [(listed, name or self._listings.name_of(listed)) for listed in found]

    async def newest(self, owner: str, name: str, *, live: bool, patience: float) -> str | None:
        """The newest stream of that name, `live` the newest that has not ended; None where there is none. One whose
        request still waits for its answer is waited for, so long at most. Raises StoreUnavailable."""
        over: set[str] = set()
        until = asyncio.get_running_loop().time() + patience
        while True:
            waits = False
            for listed, _ in await self.of(owner, name):
                if listed.stream in over:
                    continue
                status = await self._status(owner, listed.stream)
                if status is not None and not (live and status.outcome):
                    return listed.stream
                if status is None and await self._may_come(listed, until):
                    waits = True
                    break  # it is newer than the rest
                over.add(listed.stream)
            if not waits and self._listings.returned_for(owner) < self._log.settings.lease and not over:
                raise StoreUnavailable  # who knows the name may be about to say it again
            if not waits or asyncio.get_running_loop().time() >= until:
                return None
            await asyncio.sleep(_LOOK_EVERY)

    async def _status(self, owner: str, stream: str) -> Status | None:
        try:
            return await self._lookup.status(stream, owner)
        except StoreUnavailable:
            raise
        except ApiError:  # it is unknown yet, or has expired, or was another's all along
            return None

    async def _may_come(self, listed: Listed, until: float) -> bool:
        """Is there a request that may still be answered with this stream?"""
        if listed.replica != self._replica:
            return await self._log.directory.listens(listed.replica)
        producer = self._local(listed.stream)
        if producer is None:
            return False
        if not producer.created.done():
            left = until - asyncio.get_running_loop().time()
            await asyncio.wait((producer.created,), timeout=max(left, 0.0))
            return not producer.created.done() or producer.created.result()
        return producer.created.result() and producer.logged


def _is_made(producer: Producer) -> bool:
    """Is there a stream, in the log?"""
    return producer.logged and producer.created.done() and producer.created.result()
