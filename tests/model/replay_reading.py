"""The moves of B's tail, another reader there and the client, made with the relay's own code."""

from __future__ import annotations

import asyncio
import re

from relay.protocol.errors import ApiError, StoreUnavailable
from relay.protocol.ids import EventId
from relay.streams.reader import Lost
from tests.model.harness import ANSWERS, LEASE, OWNER, Harness, Mismatch, NotReplayable, Replica
from tests.model.state import State


class ReadingMoves(Harness):
    """Each leads to a state of the model."""

    # -- moves: B's tail -------------------------------------------------------------------------------------------

    async def subscribes(self, s: State) -> None:
        await self._subscribe()

    async def takes_page(self, s: State) -> None:
        assert self._page is not None
        if s.feed is not None and s.feed.closed and self.b.node.returned_at >= self._page.sent:
            raise NotReplayable  # that a store has come back since makes its answer worth less
        await self._take_page()
        self._attached()

    async def cannot_open(self, s: State) -> None:
        self.b.subscriptions.give_up(self._names.log(self._stream))
        await self._loop.settle()
        if (pending := self.b.node.take("read")) is not None:
            pending.deliver()
            await self._loop.settle()
        self._other.close()
        self._attached()

    async def tail_reads(self, s: State) -> None:
        await self._loop.settle()
        feed = self._feed
        assert feed is not None
        pending = self.b.take_read(feed.top)
        settled_at = self.b.node.returned_at + LEASE
        if pending is not None and s.log is None and pending.sent < settled_at <= self._loop.time():
            # It cannot have waited for a lease: it was given up, and a check has made the tail read again.
            while pending is not None:
                pending.fail()
                await self._loop.settle()
                pending = self.b.take_read(feed.top)
            self.b.registry._tail._fetch_soon(feed)
            await self._loop.settle()
            pending = self.b.take_read(feed.top)
        if pending is None:
            raise Mismatch("the tail does not read")
        pending.deliver()

    async def tail_checks(self, s: State) -> None:
        feed = self._feed
        assert feed is not None
        task = asyncio.ensure_future(self.b.registry._tail._check(feed))
        await self._release(self.b.node, "status")
        while (pending := self.b.node.take("status")) is not None:
            pending.deliver()
            await self._loop.settle()
        await task

    async def other_comes(self, s: State) -> None:
        await self._other_comes()

    async def other_leaves(self, s: State) -> None:
        attach = self._other.attach
        assert attach is not None
        if attach.done() and attach.exception() is None:
            self._other.reader = attach.result().reader
        self._other.close()

    # -- moves: the client -----------------------------------------------------------------------------------------

    async def gets(self, s: State) -> None:
        data = await self._read()
        assert data is not None
        self._take(data)

    async def gets_and_breaks(self, s: State) -> None:
        data = await self._read()
        assert data is not None
        self._take(data, most=s.seen - self._seen)
        self._client.close()

    async def told_the_end(self, s: State) -> None:
        clean = True
        while (data := await self._read()) is not None:
            clean = clean and re.search(rb"^id: \S+e$", data, re.M) is None
            self._take(data)
        self._check(clean, s.at == "end" or (s.at == "done" and not s.last_end))
        self._client.close()

    async def is_cut(self, s: State) -> None:
        try:
            if (data := await self._read()) and "gets" in self._move:
                self._take(data)
                data = await self._read()
        except (Lost, StoreUnavailable):
            self._client.close()
        else:
            raise Mismatch(f"the client is not cut: {data!r}")

    async def breaks(self, s: State) -> None:
        self._client.close()

    async def nothing(self, s: State) -> None:
        """What readers do when they are asked the next time."""

    def _resume(self, replica: Replica) -> None:
        n, end = self._last
        self._client.close()
        self._client.replica = replica
        self._client.attach = asyncio.ensure_future(
            replica.registry.lookup.attach(EventId(self._stream, n, end), OWNER, None)
        )

    async def resumes_on_a(self, s: State) -> None:
        self._resume(self.a)
        await self._loop.settle()
        self._attached()

    async def looks(self, s: State) -> None:
        self._resume(self.b)
        await self._loop.settle()
        self._client.look = self.b.node.take("status")
        if self._client.look is None:
            raise Mismatch("a resume does not look")
        self._client.look.execute()

    async def decides(self, s: State) -> None:
        look, attach = self._client.look, self._client.attach
        assert look is not None
        assert attach is not None
        if "404" in self._move and self.b.node.returned_at >= look.sent:
            raise NotReplayable  # that a store has come back since makes its answer worth less
        look.deliver()
        await self._loop.settle()
        while (pending := self.b.node.take("status")) is not None:  # the lease has lapsed
            pending.deliver()
            await self._loop.settle()
        if "has ended" in self._move:
            await self._first_page()
        self._attached()

    async def _first_page(self) -> None:
        self._check_own_read(self.b, self._last[0])
        attach = self._client.attach
        assert attach is not None
        while not attach.done() and (read := self.b.take_read(self._last[0])) is not None:
            if self.b.node.up:
                read.deliver()
            else:
                read.fail()
            await self._loop.settle()
        if not attach.done() and self._page is not None:  # it shares the read of a tail, which was executed earlier
            raise NotReplayable

    async def reads_first_page(self, s: State) -> None:
        await self._loop.settle()
        await self._first_page()
        self._attached()

    def _attached(self) -> None:
        """What a resume has been answered, if it has."""
        attach = self._client.attach
        if attach is None or not attach.done():
            return
        self._client.attach = None
        error = attach.exception()
        if error is None:
            self._client.reader = attach.result().reader
            self._answer = "200" if self._client.reader is not None else "204"
        elif isinstance(error, ApiError):
            self._answer = ANSWERS[type(error)]
            self._client.close()
        else:
            raise error
