"""Which request may join which generation, and what the store is told of those whose readers went, whatever it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from relay.config import StoreSettings, StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.protocol.identity import prefix_digests
from relay.protocol.outcomes import Cause, Ending, Outcome
from relay.store.directory import Noted
from relay.store.log import Log
from relay.streams.orphans import RULES, Came, Found, Orphans, Verdict, gone_beyond, how_it_came
from tests.store.benches import FakeTopology

SETTINGS = StreamSettings(lease=10, retention=30, tombstone=90, max_duration=60, attach_window=0.2)
NAME, STREAM = "session:s", "st_one"
FIELDS = {"api": "chat", "owner": "o", "upstream": "u", "model": "m", "replica": "a"}

# -- the rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attach", "session", "retries", "came"),
    [
        ("auto", None, 0, Came.PLAIN),
        ("auto", b"s", 0, Came.SESSION),
        ("auto", None, 1, Came.MARKED),
        ("auto", b"s", 1, Came.SESSION),
        ("marked", None, 0, Came.PLAIN),
        ("marked", b"s", 0, Came.PLAIN),
        ("marked", None, 1, Came.MARKED),
        ("marked", b"s", 1, Came.MARKED),
        ("off", None, 0, Came.PLAIN),
        ("off", b"s", 0, Came.PLAIN),
        ("off", None, 1, Came.PLAIN),
        ("off", b"s", 2, Came.PLAIN),
    ],
)
def test_how_a_request_came(attach: Any, session: bytes | None, retries: int, came: Came) -> None:
    assert how_it_came(attach, session, retries) is came


@pytest.mark.parametrize("came", Came)
@pytest.mark.parametrize("found", Found)
def test_the_table(came: Came, found: Found) -> None:
    verdict = RULES[came, found]
    if came is Came.PLAIN:
        assert verdict is Verdict.NEW
    elif found is Found.TAKEN:
        assert verdict is Verdict.JOIN
    else:
        assert verdict is (Verdict.WAIT if found in (Found.READ, Found.UNMADE) else Verdict.NEW)


HI, SO, NO = ({"role": "user", "content": text} for text in ("hi", "so", "no"))


def noted(request: str, messages: list[Any]) -> Noted:
    return Noted("st_other", request, len(messages), (prefix_digests(messages) or ["-"])[-1], "b")


@pytest.mark.parametrize(
    ("orphan", "body", "messages", "beyond"),
    [
        ([HI], "other", [HI, SO], True),
        ([HI], "other", [HI, SO, NO], True),
        ([HI, SO], "other", [HI, SO, NO], True),
        ([HI], "same", [HI, SO], False),
        ([HI], "other", [HI], False),
        ([HI, SO], "other", [HI], False),
        ([HI], "other", [SO, HI], False),
        ([HI, SO], "other", [HI, NO, SO], False),
        ([], "other", [HI], False),
        ([HI], "other", [], False),
    ],
)
def test_what_a_session_has_gone_beyond(orphan: list[Any], body: str, messages: list[Any], beyond: bool) -> None:
    other = noted("same", orphan)
    assert gone_beyond(body, prefix_digests(messages), [other]) == ([other] if beyond else [])


# -- what the store is told -----------------------------------------------------------------------------------


class Store:
    """Real scripts on fakeredis, behind a line that can be cut, and can lose replies."""

    def __init__(self) -> None:
        self.away = False
        self.loses_replies = 0
        self.commands = 0
        self.readers = 1
        self.log = Log(FakeTopology(), SETTINGS, StoreSettings())  # type: ignore[arg-type]
        run, call = self.log.commands.run, self.log.commands.call

        async def asked(ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
            self.commands += 1
            await asyncio.sleep(0)
            if self.away:
                raise StoreUnavailable
            reply = await ask()
            if self.loses_replies:
                self.loses_replies -= 1
                raise StoreUnavailable
            return reply

        self.log.commands.run = lambda *a, **k: asked(lambda: run(*a, **k))  # type: ignore[method-assign]
        self.log.commands.call = lambda *a, **k: asked(lambda: call(*a, **k))  # type: ignore[method-assign]
        self.orphans = Orphans(
            self.log, "a", SETTINGS, lambda _: self.readers, lambda _: None, lambda work: asyncio.create_task(work)
        )

    async def make(self) -> None:
        await self.log.create(STREAM, {**FIELDS, **self.orphans.fields(STREAM)}, "1")

    async def lose(self) -> None:
        """It comes back empty, and the stream's producer makes it again."""
        self.log.topology._node = type(self.log.topology._node)()  # type: ignore[attr-defined]
        self.orphans.store_returned()
        await self.make()
        self.orphans.renew()

    def leave(self, *, delivered: bool = False) -> None:
        self.readers = 0
        self.orphans.left(STREAM, delivered=delivered)

    def come(self) -> None:
        self.readers = 1
        self.orphans.came(STREAM)

    async def told(self) -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def joinable(self) -> bool:
        """As another replica finds it; what it takes it gives back."""
        named = [entry.stream for entry in await self.log.directory.noted(NAME)]
        found, *_ = await self.log.adopt(STREAM, "b")
        if found == "taken":
            await self.log.leave(STREAM, "b")
        return STREAM in named and found == "taken"


def play(story: Callable[[Store], Coroutine[Any, Any, None]], *, always: bool = True) -> None:
    async def scene() -> None:
        store = Store()
        store.orphans.begin(STREAM, NAME, "r", prefix_digests([HI]), [], always=always)
        await store.make()
        await store.told()
        await story(store)
        await store.orphans.close()

    asyncio.run(scene())


@pytest.mark.parametrize("always", [True, False], ids=["session", "no-session"])
def test_its_readers_come_and_go(always: bool) -> None:
    async def story(store: Store) -> None:
        assert not await store.joinable()
        for _ in range(3):
            store.leave()
            await store.told()
            assert await store.joinable()
            store.come()
            await store.told()
            assert not await store.joinable()

    play(story, always=always)


def test_without_a_session_nothing_is_told_of_what_is_never_cut() -> None:
    async def story(store: Store) -> None:
        store.commands = 0
        store.leave(delivered=True)
        store.orphans.ended(STREAM, Ending.COMPLETED)
        await store.told()
        assert store.commands == 0
        assert not store.orphans.knows(STREAM)

    play(story, always=False)


@pytest.mark.parametrize("outcome", [None, Ending.STOPPED, Ending.ABANDONED, *Cause])
@pytest.mark.parametrize("first", ["ended", "left"])
def test_what_is_no_complete_answer_gives_its_name_back(outcome: Outcome | None, first: str) -> None:
    async def story(store: Store) -> None:
        for turn in range(2):
            if (turn == 0) == (first == "ended"):
                store.orphans.ended(STREAM, outcome)
            else:
                store.leave()
            await store.told()
        assert await store.log.directory.noted(NAME) == []
        assert not store.orphans.knows(STREAM)
        assert store.orphans.of(NAME) == []

    play(story)


def test_what_was_read_to_its_end_gives_its_name_back() -> None:
    async def story(store: Store) -> None:
        store.leave(delivered=True)
        await store.told()
        assert await store.log.directory.noted(NAME) == []
        assert not await store.joinable()

    play(story)


def test_what_ended_unread_keeps_it_for_the_window() -> None:
    async def story(store: Store) -> None:
        store.leave()
        await store.told()
        store.orphans.ended(STREAM, Ending.COMPLETED)
        await store.told()
        assert await store.joinable()
        await asyncio.sleep(SETTINGS.attach_window + 0.1)
        assert await store.log.directory.noted(NAME) == []
        assert not store.orphans.knows(STREAM)

    play(story)


@pytest.mark.parametrize("how", ["away", "replies-lost", "lost"])
@pytest.mark.parametrize("last", ["gone", "read", "delivered"])
def test_the_store_hears_what_holds_now(how: str, last: str) -> None:
    async def story(store: Store) -> None:
        if how == "away":
            store.away = True
        elif how == "replies-lost":
            store.loses_replies = 2
        store.leave()
        await store.told()
        if last == "read":
            store.come()
        elif last == "delivered":
            store.come()
            store.leave(delivered=True)
        await store.told()
        store.away = False
        store.loses_replies = 0
        if how == "lost":
            await store.lose()
        for _ in range(3):
            store.orphans.renew()
            await store.told()
        assert await store.joinable() == (last == "gone")

    play(story)


def test_what_fails_while_the_store_comes_back_gives_its_name_back() -> None:
    """The store has what was noted, and nobody here knows whether it has."""

    async def story(store: Store) -> None:
        store.orphans.store_returned()
        store.orphans.ended(STREAM, Cause.UPSTREAM_DISCONNECTED)
        await store.told()
        assert await store.log.directory.noted(NAME) == []
        assert not store.orphans.knows(STREAM)

    play(story)


def test_a_stream_that_is_made_later_knows_that_its_reader_went() -> None:
    async def scene() -> None:
        store = Store()
        store.orphans.begin(STREAM, NAME, "r", prefix_digests([HI]), [], always=True)
        store.leave()
        await store.told()
        assert not await store.joinable()
        await store.make()
        assert await store.joinable()
        await store.orphans.close()

    asyncio.run(scene())
