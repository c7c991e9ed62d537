"""A reader between its look at a stream and its place in it: whatever happens in between, it gets all that follows its
position, or is told that it cannot; never a wait without an end, and never an end that looks complete and is none.

Where the moment is what matters, two replicas of one process share a real store, and the test holds the one step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from relay.protocol.errors import InvalidLastEventId, PositionUnknown, StoreBehind, StoreUnavailable, TooManyRequests
from relay.streams.reader import Lost, Reader
from tests.streams.scene import TIMEOUT, Held, Replica, Upstream, ids, replica, take, until_it_says
from tests.support.clients import Client, Fleet
from tests.support.replicas import paced, replicas, settings
from tests.support.scripted import ScriptedUpstream
from tests.support.stores import Store, valkey_server
from tests.support.waiting import until

pytestmark = pytest.mark.slow

Story = Callable[[Replica, Replica, Upstream], Awaitable[None]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with valkey_server(tmp_path_factory.mktemp("store"), unix=True) as server:
        yield server


@pytest.fixture
def play(store: Store) -> Callable[..., None]:
    """Run a story of a producing replica, another one, and the upstream of its one generation. A check comes only every
    quarter of a lease, 15 s: what arrives sooner came by itself."""

    def run(story: Story, **streams: Any) -> None:
        async def scene() -> None:
            async with AsyncExitStack() as stack:
                first, second = [
                    await stack.enter_async_context(replica(store.url, **{"abandon_after": "never", **streams}))
                    for _ in range(2)
                ]
                await story(first, second, Upstream())

        asyncio.run(scene())

    return run


Play = Callable[..., None]


async def generation(first: Replica, upstream: Upstream, events: int) -> tuple[str, Reader]:
    """A generation with so many events in its log, and its first reader."""
    producer, reader = await first.begin(upstream)
    upstream.number(1, events)
    assert ids(await take(reader, events)) == [str(n) for n in range(1, events + 1)]
    return producer.stream, reader


def numbers(first: int, last: int) -> list[str]:
    return [str(n) for n in range(first, last + 1)]


# -- a place is one operation ---------------------------------------------------------------------------------


def test_the_last_other_reader_leaves_while_one_is_given_its_place(play: Play) -> None:
    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, _ = await generation(first, upstream, 5)
        other = await second.read_from(stream, 5)
        page = Held(second.log, "read", only=lambda stream, after, *_, **__: after == 2)
        # It begins where the other one's tail does not reach back to, so its first page comes from the log.
        arriving = asyncio.ensure_future(second.read_from(stream, 2))
        await page.reached.wait()
        other.close()
        await asyncio.sleep(0.05)  # what the departure leads to may come before the page
        page.released.set()
        reader = await arriving
        upstream.number(6, 8)
        assert ids(await take(reader, 6, timeout=3)) == numbers(3, 8)
        upstream.complete()
        assert ids(await take(reader, timeout=3)) == ["9"]
        reader.close()

    play(story)


def test_one_leaves_in_the_same_moment_in_which_another_comes(play: Play) -> None:
    """The departure of the one must not be told after the other's arrival: nobody would know that one is there."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 3)
        own.close()
        place = await second.read_from(stream, 3)
        for turn in range(20):
            arriving = asyncio.ensure_future(second.read_from(stream, 3))
            for _ in range(turn):
                await asyncio.sleep(0)
            place.close()
            place = await arriving
            await second.field(stream, "top")  # all that was on its way to the store has arrived there
            await asyncio.sleep(0)
            await second.field(stream, "top")
            assert await second.is_said_to_read(stream), f"after {turn} turns the producer is told that nobody reads"
        upstream.complete()
        assert ids(await take(place, timeout=3)) == ["4"]
        place.close()

    play(story)


@pytest.mark.parametrize("fault", [StoreUnavailable(), asyncio.CancelledError()], ids=["store-away", "client-gone"])
@pytest.mark.parametrize("step", ["page", "tail"])
def test_a_place_that_cannot_be_had_is_given_back(play: Play, fault: BaseException, step: str) -> None:
    """Or the generation would have a reader for ever, and be paid for with nobody there."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 5)
        held = Held(second.log, "read", only=lambda stream, after, *_, **__: after == (2 if step == "page" else 5))
        other = None if step == "tail" else await second.read_from(stream, 5)
        arriving = asyncio.ensure_future(second.read_from(stream, 2 if step == "page" else 5))
        await held.reached.wait()
        if isinstance(fault, asyncio.CancelledError):
            arriving.cancel()
        else:
            held.fail(fault)
        held.released.set()
        with pytest.raises(type(fault)):
            await arriving
        if other is not None:
            other.close()
        await until(lambda: not second.tail._feeds, TIMEOUT, "the tail to end")
        await until_it_says(False, second.is_said_to_read, stream)
        own.close()
        assert not second.lookup._readers

    play(story)


@pytest.mark.parametrize("why", ["another-api", "too-many", "end-seen", "ahead"])
def test_a_resume_that_is_refused_is_no_reader(play: Play, why: str) -> None:
    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, _ = await generation(first, upstream, 3)
        if why == "another-api":
            with pytest.raises(InvalidLastEventId):
                await second.attach(stream, 3, api="messages")
        elif why == "too-many":
            second.lookup._readers_per_stream = 0
            with pytest.raises(TooManyRequests):
                await second.attach(stream, 3)
        elif why == "end-seen":
            assert (await second.attach(stream, 3, end=True)).reader is None
        else:
            with pytest.raises(StoreBehind):
                await second.attach(stream, 4)
        await until_it_says(False, second.is_said_to_read, stream)
        assert not second.tail._feeds
        assert not second.lookup._readers
        upstream.complete()

    play(story)


# -- what happens between the look and the place --------------------------------------------------------------


@pytest.mark.parametrize("at", ["look", "subscription", "page"])
@pytest.mark.parametrize("what", ["event", "end"])
def test_what_is_appended_while_a_reader_is_on_its_way_is_not_missed(play: Play, at: str, what: str) -> None:
    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, _ = await generation(first, upstream, 5)
        if at == "look":
            held = Held(second.log, "get_status", answers=True)
        elif at == "subscription":
            held = Held(second.tail._subscriptions, "subscribe")
        else:
            held = Held(second.log, "read", answers=True)
        arriving = asyncio.ensure_future(second.read_from(stream, 5))
        await held.reached.wait()
        upstream.number(6, 6)
        if what == "end":
            upstream.complete()
        wanted = ["6", "7"] if what == "end" else ["6"]
        await until_it_says(wanted[-1].encode(), first.field, stream, "top")
        await asyncio.sleep(0.05)  # so that a message about it has come, too, and went by
        held.released.set()
        reader = await arriving
        assert ids(await take(reader, len(wanted), timeout=3)) == wanted
        reader.close()
        upstream.end()

    play(story)


def test_a_newcomer_takes_no_page_that_was_asked_for_before_its_time(play: Play) -> None:
    """A tail that has just been given up was reading at the same place: its page is older than the newcomer."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, _ = await generation(first, upstream, 5)
        leaving = await second.read_from(stream, 5)
        link = Held(second.log, "_read", answers=True)
        feed = second.tail._feeds[stream]
        second.tail._fetch_soon(feed)
        await link.reached.wait()  # the page that holds nothing yet has been read, and is on its way
        leaving.close()
        upstream.number(6, 6)
        await until_it_says(b"6", first.field, stream, "top")
        await asyncio.sleep(0.05)
        link.let_others_pass()
        arriving = asyncio.ensure_future(second.read_from(stream, 5))
        await asyncio.sleep(0.05)
        link.released.set()
        reader = await arriving
        assert ids(await take(reader, 1, timeout=3)) == ["6"]
        reader.close()
        upstream.complete()

    play(story)


async def lose(replica: Replica, stream: str, top: int) -> None:
    """The store falls back to what it held at this event."""
    log, meta = replica.log.names.log(stream), replica.log.names.meta(stream)
    call = replica.log.commands.call
    kept = await call(log, "XRANGE", log, "-", f"{top}-0")
    await call(log, "DEL", log)
    for entry_id, (field, content) in kept:
        await call(log, "XADD", log, entry_id, field, content)
    await call(meta, "HSET", meta, "top", str(top))


def test_the_store_and_the_producer_are_lost_while_a_reader_is_on_its_way(play: Play) -> None:
    """It has seen events that nobody has any more. The end that is put in their place is not what follows them."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 8)
        held = Held(second.log, "get_status", answers=True)
        arriving = asyncio.ensure_future(second.read_from(stream, 8))
        await held.reached.wait()
        await lose(second, stream, 5)
        await second.lapse(stream)
        assert await second.log.force_end(stream, 5, "producer_lost") == (1, 5)
        held.released.set()
        try:
            reader = await arriving
        except PositionUnknown:
            pass
        else:
            with pytest.raises(Lost):
                await take(reader, timeout=3)
            reader.close()
        with pytest.raises(PositionUnknown):
            await second.attach(stream, 8)
        told = await take(await second.read_from(stream, 5))
        assert ids(told) == ["", "5e"]
        own.close()

    play(story)


def test_a_newcomer_ahead_of_a_tail_that_lags_is_not_told_the_tails_end(play: Play) -> None:
    """The tail has not heard of events that the newcomer has seen; by the time it has, the store and the producer are
    lost, and it finds an end instead of them. The follower is told that end, the newcomer must not be."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 5)
        follower = await second.read_from(stream, 5)
        lagging = Held(second.log, "read", only=lambda stream, after, *_, **__: after == 5)
        upstream.number(6, 8)
        await take(own, 3)
        await lagging.reached.wait()
        newcomer = await second.read_from(stream, 8)
        await lose(second, stream, 5)
        await second.lapse(stream)
        assert await second.log.force_end(stream, 5, "producer_lost") == (1, 5)
        lagging.released.set()
        assert ids(await take(follower)) == ["", "5e"]
        with pytest.raises(Lost):
            await take(newcomer, timeout=3)
        for reader in (follower, newcomer, own):
            reader.close()

    play(story)


def test_a_follower_of_events_that_are_lost_with_their_producer_is_cut(play: Play) -> None:
    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 3)
        reader = await second.read_from(stream, 0)
        upstream.number(4, 8)
        assert ids(await take(reader, 8)) == numbers(1, 8)
        await lose(second, stream, 5)
        await second.lapse(stream)
        assert await second.log.force_end(stream, 5, "producer_lost") == (1, 5)
        with pytest.raises(Lost):
            await take(reader, timeout=3)
        reader.close()
        own.close()

    play(story)


def test_a_position_that_the_log_of_a_live_stream_has_lost_is_to_be_asked_for_again(play: Play) -> None:
    """Its producer is to write it again, whether the tail here still has what is before it in memory or not."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 3)
        follower = await second.read_from(stream, 3)
        events = 1100  # more than a tail keeps
        upstream.number(4, events)
        assert len(await take(follower, events - 3)) == events - 3
        base = second.tail._feeds[stream].base
        assert base > 10
        await lose(second, stream, 5)
        for n in (6, base - 1, events + 1):
            with pytest.raises(StoreBehind):
                await second.attach(stream, n)
        near = await second.read_from(stream, events)  # what is in memory is given out as ever
        upstream.number(events + 1, events + 1)
        assert ids(await take(near, 1)) == [str(events + 1)]
        again = await second.read_from(stream, 6)
        assert ids(await take(again, events - 5)) == numbers(7, events + 1)
        upstream.complete()
        for reader in (follower, near, again, own):
            reader.close()

    play(story)


def test_an_end_that_the_store_has_lost_again_is_not_a_newcomers(play: Play) -> None:
    """A producer that was taken for lost goes on, and one reader of its false end is slow to leave."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 3)
        slow = await second.read_from(stream, 3)
        kept = {}
        for key in (first.log.names.log(stream), first.log.names.meta(stream)):
            kept[key] = await first.log.commands.call(key, "DUMP", key)
        await second.lapse(stream)
        assert await second.log.force_end(stream, 3, "producer_lost") == (1, 3)
        await until(lambda: second.tail._feeds[stream].end is not None, TIMEOUT, "the end to be seen")
        for key, dump in kept.items():  # a failover takes the end back, and the fence with it
            await first.log.commands.call(key, "RESTORE", key, 100_000, dump, "REPLACE")
        newcomer = await second.read_from(stream, 3)
        upstream.number(4, 5)
        assert ids(await take(newcomer, 2, timeout=3)) == ["4", "5"]
        told = await take(slow)
        assert ids(told) == ["", "3e"]
        slow.close()
        upstream.complete()
        assert ids(await take(newcomer, timeout=3)) == ["6"]
        # The id of the end that it was told is no event's: there is nothing more for it.
        assert (await second.attach(stream, 3, end=True)).reader is None
        newcomer.close()
        own.close()

    play(story)


@pytest.mark.parametrize("what", ["event", "end"])
def test_who_has_seen_more_than_the_producer_knows_to_be_in_the_log(play: Play, what: str) -> None:
    """The log has taken it, the reply is late, and a reader of another replica comes to the producer's: it waits there
    for what follows, and is not told that there is no such event or nothing more."""

    async def story(first: Replica, second: Replica, upstream: Upstream) -> None:
        stream, own = await generation(first, upstream, 5)
        committer = first.registry._committer
        answered, late = committer.answered, []
        committer.answered = lambda *answer: late.append(answer)  # type: ignore[method-assign]
        there = await second.read_from(stream, 5)
        upstream.number(6, 6)
        if what == "end":
            upstream.complete()
        last = 7 if what == "end" else 6
        assert ids(await take(there, last - 5)) == numbers(6, last)
        assert first.registry.producers[stream].feed.top == 5
        hopped = await first.read_from(stream, last)
        with pytest.raises(PositionUnknown):
            await first.attach(stream, last + 1)
        reading = asyncio.ensure_future(take(hopped))
        await asyncio.sleep(0.05)
        assert not reading.done()
        committer.answered = answered  # type: ignore[method-assign]
        for answer in late:
            answered(*answer)
        if what == "event":
            upstream.number(7, 7)
            upstream.complete()
        assert ids(await asyncio.wait_for(reading, 3)) == ([] if what == "end" else ["7", "8"])
        assert ids(await take(own)) == numbers(6, 7 if what == "end" else 8)
        for reader in (hopped, there, own):
            reader.close()

    play(story)


# -- many, over real connections ------------------------------------------------------------------------------


def test_quick_reconnects_all_go_on(upstream: ScriptedUpstream, store: Store) -> None:
    """Readers that come and go all the time, each the only one of its stream on that replica now and then."""
    with replicas(2, settings(upstream, store, {"lease": 20.0})) as (producing, other), Fleet() as fleet:
        upstream.on("m", *paced(200, 0.02))
        writers = [fleet.start(Client([producing.url], "m")) for _ in range(12)]
        for writer in writers:
            writer.wait_events(1)
        hoppers = [
            fleet.start(Client([other.url], "m", stream=writer.stream, hops=range(1 + at, 200, 3), pause=0.0))
            for writer in writers
            for at in range(2)
        ]
        fleet.wait(60)
        for hopper, writer in zip(hoppers, [w for w in writers for _ in "ab"], strict=True):
            assert hopper.end == writer.end == "done"
            assert hopper.raw == writer.raw
            assert hopper.longest_silence < 4.0, "a message was missed: only a check found what was new"
        assert sum(hopper.connections for hopper in hoppers) > 150
        assert len(upstream.calls) == len(writers)
