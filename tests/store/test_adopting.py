"""Who may join a stream that is there already: the table of `adopt.lua`, row by row, on each kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from relay.protocol.ids import new_stream_id
from relay.store.directory import Noted
from relay.store.scripts import OK
from tests.store.benches import Bench, Play, just_below, meta_key

WINDOW = 10_000  # ms, the default
Step = Callable[[Bench, str], Awaitable[object]]


async def gone(bench: Bench, stream: str) -> None:
    """The producer's replica has no reader of its own any more."""
    await bench.log.orphaned(stream, 1, 0)


async def ended(bench: Bench, stream: str, outcome: str = "completed") -> None:
    assert await bench.append(stream, 2, [], outcome=outcome) == (OK, 2)


async def back_dated(bench: Bench, stream: str, field: str, ms: int) -> None:
    value = int(await bench.raw(stream, "HGET", meta_key(stream), field))
    await bench.raw(stream, "HSET", meta_key(stream), field, value - ms)


async def seen(bench: Bench, stream: str, replica: str, ago: int = 0) -> None:
    """Another replica has readers of it."""
    await bench.log.get_status(stream, read_at=replica)
    await back_dated(bench, stream, f"r:{replica}", ago)


async def made(bench: Bench) -> str:
    stream = await bench.made(frames=2)
    await bench.raw(stream, "HSET", meta_key(stream), "orphan", "0", "taken", "0")
    return stream


ROWS: dict[str, tuple[list[Step], str]] = {
    "its reader is there": ([], "read"),
    "its reader went": ([gone], "taken"),
    "its reader went, and one came again": ([gone, lambda b, s: b.log.orphaned(s, 1, 1)], "read"),
    "and went again": ([gone, lambda b, s: b.log.orphaned(s, 2, 1)], "taken"),
    "a command is executed late": ([lambda b, s: b.log.orphaned(s, 2, 2), gone], "read"),
    "another replica reads it": ([gone, lambda b, s: seen(b, s, "r3")], "read"),
    "another replica read it a lease ago": ([gone, lambda b, s: seen(b, s, "r3", 10_000)], "taken"),
    "another replica has left it": ([gone, lambda b, s: seen(b, s, "r3"), lambda b, s: b.log.leave(s, "r3")], "taken"),
    "its producer is lost": ([gone, lambda b, s: b.lapse(s)], "lost"),
    "complete": ([gone, ended], "taken"),
    "complete, and its reader may still be there": ([ended], "read"),
    "complete, and its reader went then": ([ended, gone], "taken"),
    "complete for too long": ([gone, ended, lambda b, s: back_dated(b, s, "ended", WINDOW)], "over"),
    "complete and read": ([gone, ended, lambda b, s: b.log.mark(s, {"delivered": "1"})], "over"),
    "complete and expired": ([gone, ended, lambda b, s: b.raw(s, "DEL", b.log.names.log(s))], "over"),
    "stopped": ([gone, lambda b, s: ended(b, s, "stopped")], "over"),
    "abandoned": ([gone, lambda b, s: ended(b, s, "abandoned")], "over"),
    "failed": ([gone, lambda b, s: ended(b, s, "upstream_disconnected")], "over"),
    "ended for a lost producer": (
        [gone, lambda b, s: b.lapse(s), lambda b, s: b.log.force_end(s, 2, "producer_lost")],
        "over",
    ),
}


@pytest.mark.parametrize("where", ["r1", "r2"], ids=["at-its-producer", "elsewhere"])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_what_is_found(play: Play, row: tuple[list[Step], str], where: str) -> None:
    steps, expected = row

    async def story(bench: Bench) -> None:
        stream = await made(bench)
        for step in steps:
            await step(bench, stream)
        before = await bench.raw(stream, "HGETALL", meta_key(stream))
        assert (await bench.log.adopt(stream, where))[0] == expected
        if expected != "taken":
            assert await bench.raw(stream, "HGETALL", meta_key(stream)) == before, "it has changed nothing"

    play(story)


@pytest.mark.parametrize("complete", [False, True], ids=["live", "complete"])
@pytest.mark.parametrize(("first", "second"), [("r1", "r2"), ("r2", "r1"), ("r2", "r3")])
def test_one_of_two_takes_it_and_when_that_one_goes_the_next(
    play: Play, first: str, second: str, complete: bool
) -> None:
    async def story(bench: Bench) -> None:
        stream = await made(bench)
        await gone(bench, stream)
        if complete:
            await ended(bench, stream)
        answers = await asyncio.gather(bench.log.adopt(stream, first), bench.log.adopt(stream, second))
        assert [found for found, *_ in answers] == ["taken", "read"]
        assert await bench.log.adopt(stream, second) == ("read", "r1", [] if first == "r1" else [first])
        if first == "r1":
            await bench.log.orphaned(stream, 2, 1)
        else:
            await bench.log.leave(stream, first)
        assert (await bench.log.adopt(stream, second))[0] == "taken"

    play(story)


def test_readers_of_a_dead_replica_do_not_count(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await made(bench)
        await gone(bench, stream)
        await seen(bench, stream, "r3")
        assert await bench.log.adopt(stream, "r2") == ("read", "r1", ["r3"])
        assert (await bench.log.adopt(stream, "r2", ["r4"]))[0] == "read"
        assert (await bench.log.adopt(stream, "r2", ["r3"]))[0] == "taken"

    play(story)


def test_one_that_is_not_there_is_not_made(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = new_stream_id()
        assert await bench.log.adopt(stream, "r2") == ("unmade", "", [])
        await gone(bench, stream)
        await bench.log.mark(stream, {"delivered": "1"})
        assert await bench.raw(stream, "EXISTS", meta_key(stream)) == 0

    play(story)


def test_who_takes_a_live_stream_is_known_to_its_producer(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await made(bench)
        await gone(bench, stream)
        assert not (await bench.renew(stream)).read_elsewhere
        await bench.log.adopt(stream, "r2")
        assert (await bench.renew(stream)).read_elsewhere

    play(story)


def test_whether_it_can_be_joined_is_part_of_what_it_is(play: Play) -> None:
    async def story(bench: Bench) -> None:
        assert (await bench.status(await made(bench))).joinable
        assert not (await bench.status(await bench.made())).joinable

    play(story)


def test_what_is_noted_of_a_session(play: Play) -> None:
    async def story(bench: Bench) -> None:
        directory = bench.log.directory
        name = new_stream_id()
        assert await directory.noted(name) == []
        one, two = Noted("st_1", "req1", 3, "abc", "host-1"), Noted("st_2", "req2", 0, "", "host-2")
        await directory.note(name, one)
        await directory.note(name, two)
        assert await directory.noted(name) == [one, Noted("st_2", "req2", 0, "-", "host-2")]
        key = bench.log.names.name_key(name)
        lives = await bench.topology.node_of(key).query.call("PTTL", key)
        assert just_below(lives, 60_000 + WINDOW)
        await directory.forget(name, "st_1")
        assert [noted.stream for noted in await directory.noted(name)] == ["st_2"]
        await directory.forget(name, "st_2")
        assert await directory.noted(name) == []

    play(story)
