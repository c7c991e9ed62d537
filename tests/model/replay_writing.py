"""The moves of the upstream, the producer, the store and the other replicas, made with the relay's own code."""

from __future__ import annotations

import asyncio

from relay.protocol.outcomes import Ending
from relay.streams.leases import Leases
from tests.model.harness import CODES, LEASE, SETTINGS, Connection, Harness, Replica
from tests.model.simulated import Pending
from tests.model.state import COMPLETED, State


class WritingMoves(Harness):
    """Each leads to a state of the model."""

    # -- moves: the upstream and the producer -------------------------------------------------------------------

    async def upstream_sends(self, s: State) -> None:
        self._unsent += 1
        self._ends = self._ends or s.outcome == COMPLETED
        if s.mode == "ahead":
            self._arrive()

    async def upstream_ends(self, s: State) -> None:
        self._ends = True
        if s.mode == "ahead":
            self._arrive()

    async def told_end(self, s: State) -> None:
        self._arrive()
        await self._loop.settle()
        self.producer.stop(Ending.STOPPED)

    async def wakes(self, s: State) -> None:
        self._paused = False

    async def paused(self, s: State) -> None:
        self._paused = True

    async def killed(self, s: State) -> None:
        self.a.node.dead = True
        if self._client.replica is self.a:
            self._client = Connection()

    async def appends(self, s: State) -> None:
        """A renewal's top is of no use to a producer whose append is on its way: that is told the top, too."""
        wanted = self._move.rsplit(": ", 1)[1].split()[0]
        ((code, *_),) = (await self._append()).deliver()
        if CODES[code] == "MISMATCH" != wanted:
            ((code, *_),) = (await self._append()).deliver()
        self._check(CODES[code], wanted)

    async def append_reply_lost(self, s: State) -> None:
        pending = await self._append()
        pending.execute()
        pending.fail()

    async def append_is_late(self, s: State) -> None:
        self._late = await self._append()
        self._late.fail()

    async def late_executed(self, s: State) -> None:
        assert self._late is not None
        ((code, *_),) = self._late.execute()
        self._late = None
        self._check(CODES[code], self._move.rsplit(": ", 1)[1])

    async def late_dropped(self, s: State) -> None:
        self._late = None

    async def hold_over(self, s: State) -> None:
        self._arrive()
        await self._loop.advance(SETTINGS.store.hold + 1)

    async def renews(self, s: State) -> None:
        task = asyncio.ensure_future(self.a.registry._leases.renew([self.producer]))
        ((code, *_),) = await self._release(self.a.node, "renew")
        self._check(CODES[code], self._move.split(": ")[1].split()[0].rstrip(","))
        await task

    async def makes_again(self, s: State) -> None:
        await self._loop.settle()
        if not any(pending.kind == "create" for pending in self.a.node.pending):
            await self._loop.advance(0.3)  # it tries again in a moment
        await self._release(self.a.node, "create")

    # -- moves: the store and who ends a lost stream --------------------------------------------------------------

    async def cut_off(self, s: State) -> None:
        self.a.node.lose()

    async def reaches_again(self, s: State) -> None:
        self._found(self.a)

    async def away(self, s: State) -> None:
        self.a.node.lose()
        self.b.node.lose(self._is_first_page if s.at == "opening" else lambda _: False)
        self.c.node.lose()

    def _is_first_page(self, pending: Pending) -> bool:
        """That a client waits for it is told when the trace says so."""
        feed = self._feed
        return pending.kind == "read" and feed is not None and int(pending.command[5]) < feed.base

    async def back(self, s: State) -> None:
        for replica in (self.a, self.b, self.c):
            if not replica.node.dead:
                self._found(replica)

    def _found(self, replica: Replica) -> None:
        replica.node.found(self._loop.time())
        if replica is self.b:
            replica.node.query.up_since = None
        replica.subscriptions.miss()
        for callback in list(replica.topology.on_returned):
            callback(replica.node)

    async def lapses(self, s: State) -> None:
        self._edit("HSET", self._names.meta(self._stream), "lease", 1)

    async def back_for_a_lease(self, s: State) -> None:
        """A lease passes, without what is due in that time: the trace says what happens."""
        self._loop.skip(2 * LEASE)

    async def failover(self, s: State) -> None:
        """The log as it was after an earlier event, or as it was before its end; or nothing."""
        log, meta = self._names.log(self._stream), self._names.meta(self._stream)
        if s.log is None:
            self._edit("FLUSHDB")
        else:
            entries = self._edit("XRANGE", log, "-", "+")[: len(s.log)]
            self._edit("DEL", log)
            for entry_id, fields in entries:
                self._edit("XADD", log, entry_id, *fields)
            self._edit("HSET", meta, "top", len(s.log), "fence", "1", "lease", 1)
            self._edit("HDEL", meta, "end", "ended", "usage")
        self._late = None
        for replica in (self.a, self.b, self.c):
            if not replica.node.dead and not (replica is self.a and s.link == "cut off"):
                self._found(replica)

    async def forced_end(self, s: State) -> None:
        self._loop.skip(2 * LEASE)  # the lease has lapsed, so the store has been there for as long
        status = await self.c.log.get_status(self._stream)
        assert status is not None
        leases: Leases = self.c.registry._leases
        self._check(await leases.force_end(status), True)
