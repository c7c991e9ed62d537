"""A key is claimed from before the POST to the generation's end, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from relay.config import StoreSettings, StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.protocol.outcomes import Cause, Ending, Outcome
from relay.store.commands import Sent
from relay.store.directory import Claim, Directory
from relay.store.log import Log
from relay.store.scripts import Script
from relay.streams.claims import Claims
from tests.store.benches import FakeTopology

SETTINGS = StreamSettings(lease=10, retention=30, tombstone=90, max_duration=60)
KEY, ONE, TWO = "key:k", "st_one", "st_two"


class Store:
    """The scripts on fakeredis, which can be away, lose what it has, and lose a reply."""

    def __init__(self) -> None:
        self.away = False
        self.hangs = False
        self.loses_replies = 0
        self.back_for = float("inf")
        self.asked = 0
        self.moved = False  # another server is the primary by now
        self._log = Log(FakeTopology(), SETTINGS, StoreSettings())  # type: ignore[arg-type]
        self.directory = Directory(self, self._log.names, SETTINGS)

    def send(self, key: bytes, *command: Any) -> Sent:
        return self._log.commands.send(key, *command)

    def send_script(self, key: bytes, script: Script, keys: list[bytes], args: list[Any]) -> Awaitable[Any]:
        return self.run(key, script, keys, args)

    async def call(self, key: bytes, *command: Any) -> Any:
        return await self._answer(lambda: self._log.commands.call(key, *command))

    async def run(self, key: bytes, script: Script, keys: list[bytes], args: list[Any]) -> Any:
        return await self._answer(lambda: self._log.commands.run(key, script, keys, args))

    async def _answer(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.away:
            raise StoreUnavailable
        reply = await ask()
        if self.loses_replies:
            self.loses_replies -= 1
            raise StoreUnavailable
        return reply

    def returned_for(self, key: bytes) -> float:
        return self.back_for

    async def confirm(self, key: bytes) -> None:
        if self.moved:
            raise StoreUnavailable

    async def lose(self) -> None:
        key = self._log.names.name_key(KEY)
        await self._log.commands.call(key, "DEL", key)

    async def lives_for(self) -> float:
        key = self._log.names.name_key(KEY)
        return int(await self._log.commands.call(key, "PTTL", key)) / 1000

    def replica(self, name: str) -> Claims:
        return Claims(self.directory, name, SETTINGS)


def play(story: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story(Store()))


async def told(claims: Claims) -> None:
    """Until the store has been told what it can be told now."""
    while tasks := [held.task for held in claims._held.values() if held.task is not None]:
        await asyncio.wait(tasks)


def test_the_first_has_it_and_the_others_learn_who() -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        assert await a.claim(KEY, ONE, "d") == Claim(ONE, "d", "a")
        assert await b.claim(KEY, TWO, "d") == await a.claim(KEY, TWO, "d") == Claim(ONE, "d", "a")
        assert a.local(KEY, ONE) == Claim(ONE, "d", "a")
        assert a.local(KEY, TWO) is None
        assert b.local(KEY, ONE) is None

    play(story)


@pytest.mark.parametrize("outcome", [None, Ending.STOPPED, Ending.ABANDONED, *Cause])
def test_what_failed_or_never_came_to_be_frees_its_key(outcome: Outcome | None) -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        await a.claim(KEY, ONE, "d")
        a.ended(KEY, ONE, outcome)
        assert a.local(KEY, ONE) is None
        await told(a)
        assert await b.claim(KEY, TWO, "e") == Claim(TWO, "e", "b")
        a.ended(KEY, ONE, outcome)  # once more changes nothing
        await told(a)
        assert await store.directory.claim_of(KEY) == Claim(TWO, "e", "b")

    play(story)


def test_a_complete_answer_has_its_key_as_long_as_its_log_is_kept() -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        await a.claim(KEY, ONE, "d")
        assert SETTINGS.retention < await store.lives_for()
        a.ended(KEY, ONE, Ending.COMPLETED)
        await told(a)
        complete = Claim(ONE, "d", "a", over=True)
        assert await b.claim(KEY, TWO, "d") == complete
        assert 0 < await store.lives_for() <= SETTINGS.retention
        await store.lose()
        a.renew()  # nothing has changed, for all that is known here
        await told(a)
        assert await store.directory.claim_of(KEY) is None
        a.store_returned()
        a.renew()
        await told(a)
        assert await store.directory.claim_of(KEY) == complete

    play(story)


def test_what_goes_on_without_a_log_keeps_its_key_to_its_end_and_no_longer() -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        await a.claim(KEY, ONE, "d")
        store.away = True
        a.unlogged(KEY, ONE)
        await told(a)
        assert a.local(KEY, ONE) == Claim(ONE, "d", "a", joinable=False)
        store.away = False
        a.renew()
        await told(a)
        assert await b.claim(KEY, TWO, "d") == Claim(ONE, "d", "a", joinable=False)
        a.ended(KEY, ONE, Ending.COMPLETED)  # complete, but nobody can read it
        await told(a)
        assert await b.claim(KEY, TWO, "d") == Claim(TWO, "d", "b")

    play(story)


def test_a_store_that_came_back_empty_is_told_again() -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        await a.claim(KEY, ONE, "d")
        await store.lose()
        a.renew()
        await told(a)
        assert await b.claim(KEY, TWO, "d") == Claim(ONE, "d", "a")

    play(story)


def test_a_key_that_nobody_has_is_not_free_in_a_store_that_has_just_come_back() -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        await a.claim(KEY, ONE, "d")
        await store.lose()
        store.back_for = SETTINGS.lease - 0.1
        with pytest.raises(StoreUnavailable):
            await b.claim(KEY, TWO, "d")
        a.renew()
        await told(a)
        assert await b.claim(KEY, TWO, "d") == Claim(ONE, "d", "a")
        a.ended(KEY, ONE, None)
        await told(a)
        store.back_for = SETTINGS.lease
        assert await b.claim(KEY, TWO, "d") == Claim(TWO, "d", "b")

    play(story)


def test_a_store_that_was_away_between_question_and_answer_has_not_given_the_key() -> None:
    async def story(store: Store) -> None:
        b = store.replica("b")
        answers = iter([float("inf"), 0.1])
        store.returned_for = lambda key: next(answers)  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            await b.claim(KEY, TWO, "d")
        await told(b)
        assert await store.directory.claim_of(KEY) is None

    play(story)


def test_a_claim_whose_reply_was_lost_is_given_back() -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        store.loses_replies = 1
        with pytest.raises(StoreUnavailable):
            await a.claim(KEY, ONE, "d")
        await told(a)
        assert await b.claim(KEY, TWO, "d") == Claim(TWO, "d", "b")

    play(story)


def test_a_key_is_given_back_however_long_the_store_is_away() -> None:
    async def story(store: Store) -> None:
        a = store.replica("a")
        await a.claim(KEY, ONE, "d")
        store.away = True
        a.ended(KEY, ONE, Cause.UPSTREAM_DISCONNECTED)
        for _ in range(3):
            await told(a)
            a.renew()
        await told(a)
        store.away = False
        a.renew()
        await told(a)
        assert await store.directory.claim_of(KEY) is None
        asked = store.asked
        a.renew()
        await told(a)
        assert store.asked == asked, "it still speaks of a claim that is over"

    play(story)


def test_what_ends_while_it_is_asserted_is_over_all_the_same() -> None:
    async def story(store: Store) -> None:
        a = store.replica("a")
        await a.claim(KEY, ONE, "d")
        a.renew()
        a.ended(KEY, ONE, Ending.STOPPED)
        await told(a)
        assert await store.directory.claim_of(KEY) is None

    play(story)


def test_a_key_that_the_store_has_given_to_another_stays_the_others() -> None:
    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        await a.claim(KEY, ONE, "d")
        await store.lose()
        await b.claim(KEY, TWO, "d")
        a.renew()
        await told(a)
        a.ended(KEY, ONE, None)
        await told(a)
        assert await store.directory.claim_of(KEY) == Claim(TWO, "d", "b")

    play(story)


def test_a_key_that_a_store_has_given_back_to_the_dead_is_taken_again() -> None:
    """A failover brings back the claim of a generation that was over; while the later one runs, nobody may take it."""

    async def story(store: Store) -> None:
        a, b = store.replica("a"), store.replica("b")
        first = await a.claim(KEY, ONE, "d")
        await store.directory.release(KEY, ONE)
        await asyncio.sleep(0.002)  # the store's clock has milliseconds
        await b.claim(KEY, TWO, "d")
        await store.lose()
        await store.directory.claim(KEY, first)
        b.store_returned()
        b.renew()
        await told(b)
        assert await store.directory.claim_of(KEY) == Claim(TWO, "d", "b")

    play(story)


def test_what_runs_here_has_its_key_whatever_the_store_has_lost() -> None:
    async def story(store: Store) -> None:
        a = store.replica("a")
        await a.claim(KEY, ONE, "d")
        await store.lose()
        store.back_for, asked = 0.0, store.asked
        assert await a.claim(KEY, TWO, "d") == Claim(ONE, "d", "a")
        assert store.asked == asked
        a.ended(KEY, ONE, Ending.STOPPED)
        await told(a)
        store.back_for = float("inf")
        assert await a.claim(KEY, TWO, "d") == Claim(TWO, "d", "a")

    play(story)


def test_a_claim_at_a_server_that_has_been_replaced_is_none() -> None:
    async def story(store: Store) -> None:
        a = store.replica("a")
        store.moved = True
        with pytest.raises(StoreUnavailable):
            await a.claim(KEY, ONE, "d")
        assert a.local(KEY, ONE) is None
        await told(a)
        assert await store.directory.claim_of(KEY) is None
        store.moved = False
        await a.claim(KEY, TWO, "d")
        store.moved = True
        a.renew()  # one that is asserted again is not asked about
        await told(a)
        assert await store.directory.claim_of(KEY) == Claim(TWO, "d", "a")

    play(story)


def test_closing_waits_for_nobody() -> None:
    async def story(store: Store) -> None:
        a = store.replica("a")
        await a.claim(KEY, ONE, "d")
        store.hangs = True
        a.renew()
        await a.close()
        assert [held.task for held in a._held.values()] == [None]

    play(story)
