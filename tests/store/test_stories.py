"""What is told of streams, and which there are: on fakeredis, a real server, and a Cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from relay.config import StoreSettings, StreamSettings
from relay.protocol.ids import new_stream_id
from relay.store import stories
from relay.store.log import Log
from relay.store.stories import Line, Stories, Told
from relay.store.topology import Topology
from relay.streams.chronicle import Chronicle

SETTINGS = StreamSettings(lease=10, retention=30, tombstone=90, max_duration=60)
FIELDS = {"api": "chat", "owner": "o" * 64, "upstream": "up", "model": "gpt-*", "replica": "a"}
FIELDS["about"] = stories.about("req_1", "ci", "gpt-4o")


class Bench:
    def __init__(self, topology: Topology) -> None:
        self.log = Log(topology, SETTINGS, StoreSettings())
        self.stories = Stories(self.log.commands, self.log.names, SETTINGS)

    async def made(self, replica: str = "a", **more: str) -> str:
        stream = new_stream_id()
        await self.log.directory.announce_replica(replica, 10)
        await self.log.directory.add_stream(replica, stream)
        await self.log.create(stream, {**FIELDS, "replica": replica, **more}, "1")
        return stream

    async def raw(self, stream: str, *command: Any) -> Any:
        key = self.log.names.meta(stream)
        return await self.log.commands.call(key, command[0], key, *command[1:])

    async def seen(self, stream: str, *replicas: str) -> stories.Sight:
        (sight,) = await self.stories.look([stream], replicas, await self.stories.now())
        return sight


Story = Callable[[Bench], Awaitable[None]]
Play = Callable[[Story], None]


@pytest.fixture
def play(store: Callable[[], Topology]) -> Play:
    def run(story: Story) -> None:
        async def scene() -> None:
            topology = store()
            try:
                await topology.refresh()
                await story(Bench(topology))
            finally:
                await topology.close()

        asyncio.run(scene())

    return run


def line(what: str, *, ago: float = 0.0, n: int = 1, **more: Any) -> Line:
    return Line(time.monotonic() - ago, {"what": what, "on": "a", "n": n, **more})


def test_a_story_is_in_the_order_of_what_happened_by_the_stores_clock(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream, other = await bench.made(), await bench.made()
        later = Told(stream, 0, [line("second", ago=1, n=2, position=7)])
        assert await bench.stories.tell("a", [later, Told(other, None, [line("elsewhere")])]) == []
        assert await bench.stories.tell("b", [Told(stream, 3, [line("first", ago=5, n=9)])]) == []
        now = await bench.stories.now()
        first, second = await bench.stories.story(stream)
        assert (first["what"], second["what"], second["position"]) == ("first", "second", 7)
        assert 3.5 < second["at"] - first["at"] < 4.5
        assert 0.5 < now - second["at"] < 9
        assert [told["what"] for told in await bench.stories.story(other)] == ["elsewhere"]
        assert await bench.raw(stream, "HGET", "n:b") == b"3"
        assert await bench.raw(other, "HGET", "n:a") is None

    play(story)


def test_what_is_told_twice_is_there_once(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await bench.made()
        told = [Told(stream, 1, [line("reader gone", n=4)])]
        await bench.stories.tell("a", told)
        await bench.stories.tell("a", told)
        assert len(await bench.stories.story(stream)) == 1

    play(story)


def test_a_story_is_bounded_and_loses_its_oldest_lines(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await bench.made()
        for n in range(40):
            await bench.stories.tell("a", [Told(stream, 1, [line("x", n=4 * n + i, pad="p" * 60) for i in range(4)])])
        assert len(await bench.raw(stream, "HGET", "story")) <= stories._STORY_BYTES
        numbers = [told["n"] for told in await bench.stories.story(stream)]
        assert sorted(numbers) == list(range(numbers[0], 160))
        assert 20 < len(numbers) < 60

    play(story)


def test_nothing_is_made_of_a_stream_that_is_not_there(play: Play) -> None:
    async def story(bench: Bench) -> None:
        gone = new_stream_id()
        assert await bench.stories.tell("a", [Told(gone, 1, [line("x")])]) == []
        assert await bench.raw(gone, "EXISTS") == 0
        assert await bench.stories.story(gone) == []
        assert await bench.stories.look([gone], ["a"], 0.0) == []

    play(story)


def test_what_no_relay_has_written_is_left_out(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await bench.made()
        told = b'junk\n[]\n{"at":"x","what":"y"}\n{"what":"y"}\n\xff\n{"at":1000,"what":"good"}\n'
        await bench.raw(stream, "HSET", "story", told, "top", "many", "born", "", "lease", "\xff")
        assert [line["what"] for line in await bench.stories.story(stream)] == ["good"]
        assert (await bench.seen(stream, "a")).events == 0

    play(story)


def test_readers_are_those_of_the_replicas_that_say_so_now(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await bench.made("a", **{"n:a": "2"})
        now = round(await bench.stories.now() * 1000)
        await bench.raw(stream, "HSET", "r:b", now, "r:c", now, "n:c", 4, "r:d", now - 20_000, "n:d", 5)
        assert (await bench.seen(stream, "a", "b", "c", "d")).readers == {"a": 2, "b": None, "c": 4}
        await bench.raw(stream, "HSET", "n:a", 0)
        assert (await bench.seen(stream, "a", "b")).readers == {"b": None}
        await bench.raw(stream, "HSET", "end", "completed", "ended", now)
        assert (await bench.seen(stream, "a", "b")).readers == {}

    play(story)


def test_states(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await bench.made()
        assert (await bench.seen(stream)).state == "live"
        await bench.raw(stream, "HSET", "lease", 1)
        assert (await bench.seen(stream)).state == "lost"
        await bench.raw(stream, "HSET", "end", "stopped", "ended", 5000)
        sight = await bench.seen(stream)
        assert (sight.state, sight.ended, sight.model, sight.pattern) == ("stopped", 5.0, "gpt-4o", "gpt-*")
        assert (sight.request, sight.key) == ("req_1", "ci")
        for junk in ("", "[]", '"abc"', "[1,2]", "{}"):
            await bench.raw(stream, "HSET", "about", junk)
            assert (await bench.seen(stream)).model == ("gpt-*" if junk != '"abc"' else "c")

    play(story)


def test_what_runs_is_found_by_its_replicas(play: Play) -> None:
    async def story(bench: Bench) -> None:
        mine, theirs = await bench.made("one"), await bench.made("two")
        replicas = await bench.stories.replicas()
        assert {"one", "two"} <= replicas.keys()
        assert abs(replicas["one"] - await bench.stories.now()) < 5
        assert set(await bench.stories.running(["one", "two"])) == {mine, theirs}

    play(story)


def test_what_has_ended_is_found_for_as_long_as_it_is_kept_and_within_bounds(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stories, "_RECENT", 5)

    async def story(bench: Bench) -> None:
        key = bench.log.names.recent
        await bench.log.commands.call(key, "DEL", key)
        now = await bench.stories.now()
        await bench.stories.note_ended([("old", now - 40), ("first", now - 3)])
        assert await bench.stories.recent(0) == ["first"]
        await bench.stories.note_ended([(f"s{n}", now - 2 + n / 10) for n in range(5)])
        assert await bench.stories.recent(0) == ["s4", "s3", "s2", "s1", "s0"]
        assert await bench.stories.recent(now - 1.75) == ["s4", "s3"]
        assert 25_000 < await bench.log.commands.call(key, "PTTL", key) <= 30_000
        await bench.stories.note_ended([])

    play(story)


def test_a_chronicle_tells_many_streams_together_and_none_for_a_stream_without_news(play: Play) -> None:
    async def story(bench: Bench) -> None:
        streams = [await bench.made() for _ in range(5)]
        calls: list[int] = []
        tell = bench.stories.tell

        async def counted(replica: str, news: Any) -> list[Told]:
            calls.append(len(news))
            return await tell(replica, news)

        bench.stories.tell = counted  # type: ignore[method-assign]
        chronicle = Chronicle("a", bench.stories, lambda stream: streams.index(stream))
        for stream in streams[:4]:
            chronicle.note(stream, "reader gone", position=1)
            chronicle.note(stream, "reader came", after=1)
        chronicle.note(new_stream_id(logged=False), "reader gone")
        await chronicle.close()
        assert calls == [4]
        assert [told["what"] for told in await bench.stories.story(streams[3])] == ["reader gone", "reader came"]
        assert await bench.raw(streams[3], "HGET", "n:a") == b"3"
        assert await bench.raw(streams[4], "HEXISTS", "story") == 0

    play(story)


def test_what_the_store_would_not_take_is_told_when_it_is_back(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream, other = await bench.made(), await bench.made()
        tell, away, refused = bench.stories.tell, True, asyncio.Event()

        async def unreliable(replica: str, news: list[Told]) -> list[Told]:
            if away:
                left = [*news[1:], *await tell(replica, news[:1])]
                refused.set()
                return left
            return await tell(replica, news)

        bench.stories.tell = unreliable  # type: ignore[method-assign, assignment]
        chronicle = Chronicle("a", bench.stories, lambda _: 0)
        chronicle.note(stream, "first")
        chronicle.note(other, "second")
        async with asyncio.timeout(10):
            await refused.wait()
        assert await bench.stories.story(other) == []
        chronicle.note(other, "third")
        away = False
        await chronicle.close()
        assert [told["what"] for told in await bench.stories.story(other)] == ["second", "third"]
        assert len(await bench.stories.story(stream)) == 1

    play(story)
