"""Nothing of a stream is held once it has ended and its readers have left: with the collector of cycles switched off.

A stream has its events in memory to its end, 64 MiB of them at most; what waited for the collector would be there
several times over.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

from relay.protocol.outcomes import Ending
from relay.streams.feed import Feed
from relay.streams.ingest import UpstreamIngest
from relay.streams.producer import Producer
from relay.streams.reader import Lost, Reader
from relay.streams.registry import Registry
from relay.streams.tail import TailFeed
from relay.streams.writer import LogWriter
from tests.streams.scene import TIMEOUT, Replica, Upstream, replica, take
from tests.support.stores import Store, valkey_server
from tests.support.waiting import until

KINDS = (Feed, UpstreamIngest, LogWriter, Producer, Reader, TailFeed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with valkey_server(tmp_path_factory.mktemp("store"), unix=True) as server:
        yield server


def found() -> dict[str, int]:
    """What there is of streams, whether anybody can still reach it or not."""
    there = Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, KINDS))
    return dict(there)


async def completed(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 20)
    there = await second.read_from(producer.stream, 0)
    upstream.complete()
    for each in (reader, there):
        assert len(await take(each)) == 21
        each.close()


async def failed(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 20)
    there = await second.read_from(producer.stream, 5)
    upstream.end(broken=True)
    assert len(await take(reader)) == 22
    assert len(await take(there)) == 17
    reader.close()
    there.close()


async def malformed(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    _, reader = await first.begin(upstream)
    upstream.number(1, 3)
    upstream.send(b"data: {nonsense\n\n")
    upstream.complete()
    assert len(await take(reader)) == 5
    reader.close()


async def ended_by_the_upstreams_error(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    _, reader = await first.begin(upstream)
    upstream.number(1, 3)
    upstream.send(b'data: {"error":{"message":"m","type":"t","param":null,"code":"c"}}\n\n')
    upstream.end()
    assert len(await take(reader)) == 4
    reader.close()


async def stopped_here(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 3)
    await take(reader, 3)
    producer.stop(Ending.STOPPED)
    assert len(await take(reader)) == 2
    assert upstream.cancelled.is_set()
    reader.close()


async def stopped_elsewhere(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 3)
    await take(reader, 3)
    await second.lookup.stop(producer.stream, producer.owner)
    assert len(await take(reader)) == 2
    reader.close()


async def abandoned(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    _, reader = await first.begin(upstream)
    upstream.number(1, 3)
    await take(reader, 3)
    reader.close()
    await asyncio.wait_for(upstream.cancelled.wait(), 5)


async def fenced(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 3)
    await take(reader, 3)
    there = await second.read_from(producer.stream, 3)
    await second.lapse(producer.stream)
    assert await second.log.force_end(producer.stream, 3, "producer_lost") == (1, 3)
    upstream.number(4, 4)
    for each in (reader, there):
        assert len(await take(each)) == 2
        each.close()


async def fenced_ahead_of_its_log(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 3)
    await take(reader, 3)
    await second.lapse(producer.stream)
    assert await second.log.force_end(producer.stream, 3, "producer_lost") == (1, 3)
    producer.writer.on_store_away()
    upstream.number(4, 4)
    with pytest.raises(Lost):
        await take(reader)
    reader.close()


async def lost_and_made_again(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 20)
    await take(reader, 20)
    log, meta = producer.writer.keys
    await first.log.commands.call(log, "DEL", log, meta)
    upstream.number(21, 22)
    upstream.complete()
    assert len(await take(reader)) == 3
    reader.close()


async def broken_by_a_fault_of_the_relays_own(first: Replica, second: Replica) -> None:
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 3)
    await take(reader, 3)

    def fail() -> None:
        raise RuntimeError("injected")

    producer.feed.watch(fail)
    upstream.number(4, 4)
    await asyncio.wait_for(upstream.cancelled.wait(), 5)
    producer.feed.unwatch(fail)
    reader.close()


async def waiting_for_its_log(first: Replica, second: Replica) -> None:
    """What a slow store has made wait, and an upstream that was paused for it."""
    upstream = Upstream()
    _, reader = await first.begin(upstream)
    big = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * (200 << 10))
    for _ in range(4):
        upstream.send(big)
    assert upstream.paused
    await until(lambda: not upstream.paused, TIMEOUT, "the upstream to go on")
    upstream.complete()
    assert len(await take(reader)) == 5
    reader.close()


async def read_from_the_log(first: Replica, second: Replica) -> None:
    """By readers of a finished stream, one of whom leaves early."""
    upstream = Upstream()
    producer, reader = await first.begin(upstream)
    upstream.number(1, 600)
    upstream.complete()
    assert len(await take(reader)) == 601
    reader.close()
    await until(lambda: not first.registry.producers, TIMEOUT, "the end")
    again, early = await second.read_from(producer.stream, 0), await second.read_from(producer.stream, 0)
    assert len(await take(again)) == 601
    await early.read()
    again.close()
    early.close()


STORIES = (
    completed,
    failed,
    malformed,
    ended_by_the_upstreams_error,
    stopped_here,
    stopped_elsewhere,
    abandoned,
    fenced,
    fenced_ahead_of_its_log,
    lost_and_made_again,
    broken_by_a_fault_of_the_relays_own,
    waiting_for_its_log,
    read_from_the_log,
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_nothing_of_a_stream_outlives_it(store: Store, story: Callable[[Replica, Replica], Awaitable[None]]) -> None:
    async def scene() -> None:
        async with (
            replica(store.url, abandon_after=0.0 if story is abandoned else "never") as first,
            replica(store.url, abandon_after="never") as second,
        ):
            await completed(first, second)  # what is made once is made by now
            await settled(first, second)
            gc.collect()
            gc.disable()
            logging.disable()  # what pytest keeps of a line that tells an exception holds all it went through
            before = found()
            await story(first, second)
            await settled(first, second)
            assert found() == before

    try:
        asyncio.run(scene())
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def _is_over(registry: Registry) -> bool:
    return not registry._running and not registry._background


async def settled(*replicas: Replica) -> None:
    """Everything that goes on in the background is done."""
    for each in replicas:
        registry = each.registry
        ended = partial(_is_over, registry)
        await until(ended, TIMEOUT, "the stream's end")
        await until(lambda each=each: not each.tail._feeds, TIMEOUT, "the tails' end")  # type: ignore[misc]
    for _ in range(3):
        await asyncio.sleep(0)
