"""A stream between its upstream's head and its first event: in the log by then, and told to nobody yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from relay.protocol.errors import ApiError, StoreUnavailable
from relay.protocol.outcomes import Cause, Ending
from relay.streams.answer import Failed, Opened
from relay.streams.producer import Producer
from relay.streams.silence import Silence
from tests.streams.scene import TIMEOUT, Replica, Upstream, replica, take
from tests.support.oracle import frame
from tests.support.stores import Store, valkey_server
from tests.support.waiting import until

BUSY = b'data: {"error":{"message":"Too many","type":"rate_limit_error","code":"429"}}\n\n'
BEAT = b": still there\n\ndata: ping\n\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with valkey_server(tmp_path_factory.mktemp("store"), unix=True) as server:
        yield server


async def made(one: Replica, producer: Producer) -> None:
    """Returns when the log has the stream."""
    await until(lambda: producer.stream in one.registry.producers, TIMEOUT, "the stream in the log")
    assert await one.log.get_status(producer.stream) is not None
    assert not producer.created.done()
    assert not producer.answer.done()


async def outcome(one: Replica, producer: Producer) -> str:
    """What the log says, once the producer is done."""
    await asyncio.wait_for(producer.done(), TIMEOUT)
    status = await one.log.get_status(producer.stream)
    return "" if status is None else str(status.outcome)


def counted(one: Replica) -> dict[str, float]:
    """The ends that were counted."""
    found: dict[str, float] = {}
    for sample in next(iter(one.registry.metrics.streams.collect())).samples:
        if sample.name == "relay_streams_total" and sample.value:
            found[sample.labels["outcome"]] = sample.value
    return found


def test_it_is_made_while_its_first_event_is_waited_for(store: Store) -> None:
    async def story() -> None:
        async with replica(store.url, abandon_after="never") as one:
            upstream = Upstream()
            producer, reader = await one.begin(upstream, patience=True)
            await made(one, producer)
            upstream.send(BEAT)
            await asyncio.sleep(0.05)
            assert not producer.answer.done()
            upstream.number(1, 3)
            assert isinstance(await asyncio.wait_for(producer.answer, TIMEOUT), Opened)
            assert producer.created.done()
            upstream.complete()
            assert len(await take(reader)) == 4
            assert await outcome(one, producer) == Ending.COMPLETED
            reader.close()

    asyncio.run(story())


@pytest.mark.parametrize("slow", [False, True], ids=["made", "being-made"])
@pytest.mark.parametrize("begins", ["error", "nothing", "silence"])
def test_what_begins_with_no_answer_is_ended_in_the_log_and_counted_before_its_client_hears(
    store: Store, begins: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with replica(store.url, abandon_after="never", upstream_idle_timeout=0.3) as one:
            put, gate = one.registry._context.put_into_store, asyncio.Event()

            async def late(_: Any, producer: Producer) -> None:
                await gate.wait()
                await put(producer)

            if slow:
                monkeypatch.setattr(type(one.registry._context), "put_into_store", late)
            upstream = Upstream()
            producer, reader = await one.begin(upstream, patience=True)
            if not slow:
                await made(one, producer)
            if begins == "error":
                upstream.send(BUSY)
            elif begins == "nothing":
                upstream.end()
            gate.set() if not slow else None
            answer = await asyncio.wait_for(asyncio.shield(producer.answer), TIMEOUT)
            assert counted(one) == {"failed": 1}
            gate.set()
            if begins == "error":
                assert isinstance(answer, Failed)
                assert answer.status == 429
            else:
                assert isinstance(answer, ApiError)
                assert answer.status == (502 if begins == "nothing" else 504)
            cause = {"error": Cause.UPSTREAM_ERROR, "nothing": Cause.UPSTREAM_DISCONNECTED}
            assert await outcome(one, producer) == cause.get(begins, Cause.UPSTREAM_TIMEOUT)
            assert not producer.created.result()
            assert counted(one) == {"failed": 1}
            reader.close()

    asyncio.run(story())


def test_a_making_that_fails_is_told_before_any_event(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with replica(store.url, store={"outage": "refuse"}, abandon_after="never") as one:

            async def fails(_: Any, producer: Producer) -> None:
                await asyncio.sleep(0.05)
                raise StoreUnavailable

            monkeypatch.setattr(type(one.registry._context), "put_into_store", fails)
            upstream = Upstream()
            producer, reader = await one.begin(upstream, patience=True)
            answer = await asyncio.wait_for(asyncio.shield(producer.answer), TIMEOUT)
            assert isinstance(answer, StoreUnavailable)
            await asyncio.wait_for(upstream.cancelled.wait(), TIMEOUT)
            reader.close()

    asyncio.run(story())


def test_a_client_whose_patience_is_over_is_given_it_before_any_event(store: Store) -> None:
    async def story() -> None:
        async with replica(store.url, abandon_after="never") as one:
            upstream = Upstream()
            producer, reader = await one.begin(upstream, patience=True)
            await made(one, producer)
            await producer.ensure_created()
            assert isinstance(await asyncio.wait_for(producer.answer, TIMEOUT), Opened)
            upstream.number(1, 2)
            upstream.complete()
            assert len(await take(reader)) == 3
            reader.close()

    asyncio.run(story())


def test_what_comes_while_the_store_makes_the_stream_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream is made to wait, and is not called silent for it."""
    limits: list[str] = []
    monkeypatch.setattr(Silence, "_give_up", lambda silence: limits.append(silence._next_limit()[1]))

    async def story() -> None:
        async with replica(store.url, abandon_after="never", upstream_idle_timeout=0.2) as one:
            put, gate = one.registry._context.put_into_store, asyncio.Event()

            async def late(_: Any, producer: Producer) -> None:
                await gate.wait()
                await put(producer)

            monkeypatch.setattr(type(one.registry._context), "put_into_store", late)
            upstream = Upstream()
            _, reader = await one.begin(upstream, patience=True)
            upstream.send(frame(1))
            assert not upstream.paused
            upstream.send(frame(2))
            assert upstream.paused
            await asyncio.sleep(0.4)
            gate.set()
            await until(lambda: not upstream.paused, TIMEOUT, "the upstream to go on")
            upstream.complete()
            assert len(await take(reader)) == 3
            reader.close()
        assert limits == []

    asyncio.run(story())
