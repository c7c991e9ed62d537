"""A replica's streams in their owners' lists, with a store that loses what it was told, and requests that come to
nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from relay.config import LimitSettings, StreamSettings
from relay.encryption import PLAIN, Cipher
from relay.protocol.errors import StoreUnavailable, StreamNotFound
from relay.protocol.ids import new_stream_id
from relay.store.listings import Listed, Listings
from relay.store.names import Names
from relay.streams.listing import Listing

OWNER = "o" * 64


class Sent:
    """What is on its way to a store that is asked but once."""

    def __init__(self, first: asyncio.Future[int]) -> None:
        self.first = first

    def __await__(self) -> Generator[Any, None, int]:
        return self.first.__await__()


class Store(Listings):
    """The lists in memory, of a store that can be away or lose all."""

    def __init__(self) -> None:
        nowhere: Any = None
        super().__init__(nowhere, Names(), StreamSettings(), LimitSettings(), Cipher(PLAIN))
        self.kept: dict[bytes, int] = {}
        self.away = False
        self.clock = 1

    def put(self, owner: str, listed: Listed) -> Any:
        first: asyncio.Future[int] = asyncio.Future()
        if self.away:
            first.set_exception(StoreUnavailable())
        else:
            self.clock += 1
            first.set_result(self.kept.setdefault(listed.entry, listed.at or self.clock))
        return Sent(first)

    async def remove(self, owner: str, listed: Listed) -> None:
        self.kept.pop(listed.entry, None)

    async def of(self, owner: str) -> list[Listed]:
        newest = sorted(self.kept, key=lambda entry: -self.kept[entry])
        return [found for entry in newest if (found := self._read(b"", entry)) is not None]

    def returned_for(self, owner: str) -> float:
        return float("inf")


class Running:
    """A producer, as the list knows it."""

    def __init__(self) -> None:
        self.owner = OWNER
        self.stream = new_stream_id()
        self.logged = True
        self.created: asyncio.Future[bool] = asyncio.Future()


class Scene:
    """One replica's listing; `statuses` are the streams that are in the log, `others` the replicas that listen."""

    def __init__(self) -> None:
        self.store = Store()
        self.statuses: dict[str, str] = {}
        self.others: set[str] = set()
        self.running: dict[str, Any] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        owners = SimpleNamespace(digest=lambda use, *parts: b"/".join(parts).hex()[-40:])
        directory = SimpleNamespace(listens=self._listens)
        log = SimpleNamespace(directory=directory, settings=StreamSettings())
        lookup = SimpleNamespace(status=self._status)
        parts: tuple[Any, ...] = (self.store, "here", log, owners, lookup, self.running.get, self._later)
        self.listing = Listing(*parts)

    async def _listens(self, replica: str) -> bool:
        return replica in self.others

    async def _status(self, stream: str, owner: str) -> Any:
        if stream not in self.statuses:
            raise StreamNotFound
        return SimpleNamespace(outcome=self.statuses[stream])

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def attempt() -> None:
            try:
                await work
            except StoreUnavailable:
                pass

        task = asyncio.create_task(attempt())
        self.tasks.add(task)
        return task

    async def settle(self) -> None:
        while pending := [task for task in self.tasks if not task.done()]:
            await asyncio.wait(pending)

    def begin(self, name: str) -> Any:
        producer: Any = Running()
        self.running[producer.stream] = producer
        self.listing.begin(producer, name)
        return producer

    async def made(self, producer: Any, outcome: str = "") -> None:
        listed = self.listing.put(producer)
        if listed is not None:
            await asyncio.wait((listed,))
        producer.created.set_result(True)
        self.statuses[producer.stream] = outcome

    def over(self, producer: Any) -> None:
        if not producer.created.done():
            producer.created.set_result(False)
        self.running.pop(producer.stream, None)
        self.listing.ended(producer)

    async def names(self) -> list[str | None]:
        return [name for _, name in await self.listing.of(OWNER)]

    async def newest(self, name: str, *, live: bool = False, patience: float = 10.0) -> str | None:
        return await self.listing.newest(OWNER, name, live=live, patience=patience)


def test_a_stream_is_listed_when_it_is_made_and_one_with_a_name_before() -> None:
    async def story() -> None:
        scene = Scene()
        named, nameless = scene.begin("chat"), scene.begin("")
        await scene.settle()
        assert await scene.names() == ["chat"]
        await scene.made(named)
        await scene.made(nameless)
        assert await scene.names() == [None, "chat"]
        scene.over(named)
        scene.over(nameless)
        await scene.settle()
        assert await scene.names() == [None, "chat"]  # they can be read as long as they are kept

    asyncio.run(story())


@pytest.mark.parametrize("slow", [False, True])
def test_what_comes_to_be_no_stream_leaves_the_list(slow: bool) -> None:
    async def story() -> None:
        scene = Scene()
        producer = scene.begin("chat")
        if not slow:
            await scene.settle()
        scene.over(producer)
        await scene.settle()
        assert await scene.names() == []

    asyncio.run(story())


def test_what_the_store_has_lost_is_said_again_in_its_place() -> None:
    async def story() -> None:
        scene = Scene()
        first, second = scene.begin("one"), scene.begin("two")
        await scene.made(first)
        await scene.made(second)
        scene.store.kept.clear()
        scene.listing.renew()  # nothing is known to be lost yet
        await scene.settle()
        assert await scene.names() == []
        scene.listing.store_returned()
        scene.listing.renew()
        await scene.settle()
        assert await scene.names() == ["two", "one"]

    asyncio.run(story())


def test_a_store_that_is_away_hinders_no_stream() -> None:
    async def story() -> None:
        scene = Scene()
        scene.store.away = True
        producer = scene.begin("chat")
        await scene.made(producer)
        assert await scene.names() == []
        scene.store.away = False
        scene.listing.renew()
        await scene.settle()
        assert await scene.names() == ["chat"]

    asyncio.run(story())


def test_the_newest_of_a_name_and_the_newest_that_is_live() -> None:
    async def story() -> None:
        scene = Scene()
        live, ended = scene.begin("chat"), scene.begin("chat")
        await scene.made(live)
        await scene.made(ended, "completed")
        scene.over(ended)
        assert await scene.newest("chat") == ended.stream
        assert await scene.newest("chat", live=True) == live.stream
        assert await scene.newest("other") is None

    asyncio.run(story())


def test_a_request_that_waits_is_waited_for_and_no_longer_than_patience() -> None:
    async def story() -> None:
        scene = Scene()
        older = scene.begin("chat")
        await scene.made(older)
        waits = scene.begin("chat")
        await scene.settle()
        asking = asyncio.create_task(scene.newest("chat", live=True))
        await scene.made(waits)
        assert await asking == waits.stream
        never = scene.begin("chat")
        await scene.settle()
        assert await scene.newest("chat", live=True, patience=0.05) is None
        scene.over(never)
        await scene.settle()
        assert await scene.newest("chat", live=True, patience=0.05) == waits.stream

    asyncio.run(story())


@pytest.mark.parametrize("lives", [True, False])
def test_another_replicas_request_is_waited_for_while_that_lives(lives: bool) -> None:
    async def story() -> None:
        scene = Scene()
        older = scene.begin("chat")
        await scene.made(older)
        digest = next(iter(await scene.listing.of(OWNER)))[0].digest
        elsewhere = scene.store.entry(OWNER, stream := new_stream_id(), "there", digest, "chat")
        await scene.store.put(OWNER, elsewhere)
        if lives:
            scene.others.add("there")
        asking = asyncio.create_task(scene.newest("chat"))
        if lives:
            await asyncio.wait({asking}, timeout=0.2)
            assert not asking.done()
            scene.statuses[stream] = ""
        assert await asking == (stream if lives else older.stream)

    asyncio.run(story())
