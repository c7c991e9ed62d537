"""How a request joins a generation whose reader has gone: at most one of any number of them, on any replicas.

The store decides between replicas (`adopt.lua`), this between the requests of one. Nobody joins what somebody reads:
requests that are the same, and at work at the same time, stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from relay.protocol.errors import StoreUnavailable
from relay.protocol.ids import EventId
from relay.store.directory import Noted
from relay.store.log import Log
from relay.streams.lookup import Attached, Lookup
from relay.streams.orphans import Found, Orphans
from relay.streams.tail import Tail


class Adoption:
    """One per replica."""

    def __init__(
        self,
        replica: str,
        log: Log,
        lookup: Lookup,
        orphans: Orphans,
        tail: Tail,
        background: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._replica = replica
        self._log = log
        self._lookup = lookup
        self._orphans = orphans
        self._tail = tail
        self._background = background
        self._probes: dict[str, tuple[Callable[[], None], ...]] = {}  # of the clients that read a stream here
        self._taken: set[str] = set()  # by requests on this replica, until the store knows that they have gone again

    def connected(self, stream: str, probe: Callable[[], None]) -> None:
        """A client reads a stream here; `probe` finds out whether it is still there."""
        self._probes[stream] = (*self._probes.get(stream, ()), probe)

    def disconnected(self, stream: str, probe: Callable[[], None]) -> None:
        probes = tuple(other for other in self._probes.pop(stream) if other != probe)
        if probes:
            self._probes[stream] = probes

    def probe(self, stream: str) -> None:
        """Somebody, somewhere, asks for the same as the readers of a stream."""
        for probe in self._probes.get(stream, ()):
            probe()

    async def adopt(
        self, noted: Noted, owner: str, api: str, *, again: bool = False, abandon_after: float | None = None
    ) -> tuple[Found, Attached | None]:
        """Join a stream from its start, where it is an orphan: a place in it then. Where it is read, its readers are
        asked whether they are still there, unless that was done before (`again`). Raises what `Lookup.attach` does."""
        stream = noted.stream
        if self._lookup.readers_of(stream) or stream in self._taken:
            if not again:
                self.probe(stream)
            return Found.READ, None
        self._taken.add(stream)
        attached = None
        try:
            with self._tail.arriving(stream):
                found, producer = await self._take(noted, "" if again else "probe")
                if found is not Found.TAKEN:
                    return found, None
                local = producer == self._replica
                if local:
                    self._orphans.adopted(stream)
                try:
                    attached = await self._lookup.attach(
                        EventId(stream, 0), owner, api, joins=True, abandon_after=abandon_after
                    )
                finally:
                    if attached is None and local:
                        self._orphans.left(stream, delivered=False)
                    elif attached is None:
                        self._tail.announce(stream, producer)
            return found, attached
        finally:
            if attached is None:
                self._taken.discard(stream)

    async def _take(self, noted: Noted, ask: str) -> tuple[Found, str]:
        stream, directory = noted.stream, self._log.directory
        try:
            found, producer, readers = await self._log.adopt(stream, self._replica)
            producer = producer or noted.replica
            waits = found in (Found.READ, Found.UNMADE)
            if waits and producer != self._replica and not await directory.tell(producer, ask, stream):
                return Found.LOST, producer
            if found == Found.READ and readers:
                # A replica that dies takes no leave of its readers, but nobody listens there any more.
                dead = [name for name in readers if not await directory.tell(name, ask, stream)]
                if dead:
                    found, producer, _ = await self._log.adopt(stream, self._replica, dead)
        except StoreUnavailable:  # it may have done what it was asked for
            if self._orphans.knows(stream):
                self._orphans.adopted(stream)
                self._orphans.left(stream, delivered=False)
            else:
                self._background(self._log.leave(stream, self._replica))
            raise
        return Found(found), producer

    def follows(self, stream: str, *, joinable: bool) -> bool:
        """Does it matter here how a reader of this stream has left it?"""
        return joinable or stream in self._taken or self._orphans.knows(stream)

    def left(self, stream: str, *, delivered: bool, joinable: bool) -> None:
        """A reader here, of whatever stream, has had it to its end, or has gone before."""
        if self._orphans.knows(stream):
            self._taken.discard(stream)
            self._orphans.left(stream, delivered=delivered)
        elif stream in self._taken or (joinable and delivered):
            self._background(self._tell_of_leaving(stream, delivered))

    async def _tell_of_leaving(self, stream: str, delivered: bool) -> None:
        try:
            if delivered:
                await self._log.mark(stream, {"delivered": "1"})
            elif not self._lookup.readers_of(stream):
                await self._log.leave(stream, self._replica)
        finally:
            self._taken.discard(stream)
