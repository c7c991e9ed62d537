"""Producers on a real store: what is one stream's own ends, or harms, that stream alone."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from relay.config import UpstreamSettings
from relay.protocol.apis import DIALECTS
from relay.protocol.errors import StoreUnavailable
from relay.protocol.ids import new_stream_id
from relay.protocol.outcomes import Ending
from relay.streams.account import Request
from relay.streams.answer import Asking
from relay.streams.reader import Lost
from relay.upstream.answer_headers import AnswerHeaders
from relay.upstream.client import Response
from relay.upstream.routing import Route
from tests.streams.scene import OWNER, TIMEOUT, Held, Replica, Upstream, ids, replica, take, until_it_says
from tests.support.oracle import DONE, frame
from tests.support.stores import Store, valkey_server
from tests.support.waiting import until


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with valkey_server(tmp_path_factory.mktemp("store"), unix=True) as server:
        yield server


@pytest.mark.parametrize("when", ["on-an-event", "on-the-end", "on-a-renewal"])
def test_a_fault_in_one_stream_ends_that_stream_alone(
    store: Store, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with replica(store.url, abandon_after="never") as first, replica(store.url) as second:
            faulty, sound = Upstream(), Upstream()
            producer, reader = await first.begin(faulty)
            _, other = await first.begin(sound)
            for upstream in (faulty, sound):
                upstream.number(1, 3)
            for each in (reader, other):
                await take(each, 3)

            def fail(*_: object) -> None:
                raise RuntimeError("injected")

            if when == "on-a-renewal":
                producer.on_renewed = fail  # type: ignore[assignment,method-assign]
                await first.registry._leases.renew(list(first.registry.producers_to_renew()))
            else:
                producer.feed.watch(fail)
                faulty.number(4, 4) if when == "on-an-event" else faulty.complete()
            sound.number(4, 6)
            assert ids(await take(other, 3)) == ["4", "5", "6"]
            await until(lambda: producer.stream not in first.registry.producers, TIMEOUT, "the end of the faulty one")
            assert "injected" in caplog.text
            assert producer.stream in caplog.text
            sound.complete()
            assert ids(await take(other)) == ["7"]
            # Its end is in the log, or others are to put it there.
            await second.lapse(producer.stream)
            again = await second.read_from(producer.stream, 0)
            try:
                frames = await take(again, timeout=3)
            except TimeoutError:
                raise AssertionError("nobody ends it") from None
            assert ids(frames)[:3] == ["1", "2", "3"]
            for each in (reader, other, again):
                each.close()

    asyncio.run(scene())


def test_a_fault_in_one_readers_connection_cuts_that_reader_alone(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with replica(store.url, abandon_after="never") as first, replica(store.url) as second:
            upstream = Upstream()
            producer, reader = await first.begin(upstream)
            upstream.number(1, 3)
            assert len(await take(reader, 3)) == 3
            for where in (first, second):
                last = producer.writer.last
                faulty, sound = [await where.read_from(producer.stream, last) for _ in range(2)]

                def fail(data: bytes) -> bool:
                    raise RuntimeError("injected")

                faulty.write_through = fail
                reading = asyncio.ensure_future(faulty.read())
                await asyncio.sleep(0)
                upstream.number(last + 1, last + 1)
                assert ids(await take(sound, 1)) == [str(last + 1)]
                with pytest.raises(Lost):
                    await asyncio.wait_for(reading, 3)
                for each in (faulty, sound):
                    each.close()
            assert "injected" in caplog.text
            upstream.complete()
            assert len(await take(reader)) == 3
            reader.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scene())


def test_a_request_is_let_go_of_once_the_upstream_has_answered(store: Store) -> None:
    """It may be megabytes, and the stream may run for an hour."""

    class RequestBody:
        pass

    async def scene() -> None:
        async with replica(store.url, abandon_after="never") as first:
            upstream = Upstream()
            body = RequestBody()
            kept = weakref.ref(body)
            producer, reader = await first.begin(upstream, request=body)
            upstream.number(1, 1)
            await take(reader, 1)
            del body
            gc.collect()
            assert kept() is None
            upstream.complete()
            assert len(await take(reader)) == 1
            reader.close()
            del producer

    asyncio.run(scene())


def test_a_stop_while_the_stream_is_being_made_is_its_end(store: Store) -> None:
    """Its client is owed an answer, and the stream stands in the store."""

    async def scene(first: Replica) -> None:
        upstream = Upstream()
        made = first.log.create

        async def create(*args: object) -> None:
            await made(*args)  # type: ignore[arg-type]
            (producer,) = first.registry._running
            producer.stop(Ending.STOPPED)
            await asyncio.sleep(0.01)

        first.log.create = create  # type: ignore[assignment,method-assign]
        producer, reader = await first.begin(upstream, read=False)
        frames = await take(reader)
        assert ids(frames) == ["", "0e"]
        status = await first.log.get_status(producer.stream)
        assert status is not None
        assert status.outcome == "stopped"
        reader.close()

    async def run() -> None:
        async with replica(store.url, abandon_after="never") as first:
            await scene(first)

    asyncio.run(run())


_MESSAGE_START = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


@pytest.mark.parametrize(("api", "last"), [("chat", DONE), ("messages", _MESSAGE_STOP)])
def test_a_stop_right_after_the_upstreams_last_event_adds_no_second_end(store: Store, api: str, last: bytes) -> None:
    """Its producer has not run yet since the upstream ended the stream."""

    async def run() -> None:
        async with replica(store.url, abandon_after="never") as first:
            upstream = Upstream()
            producer, reader = await first.begin(upstream, api=api)
            upstream.send(frame(1) if api == "chat" else _MESSAGE_START)
            upstream.send(last)
            producer.stop(Ending.STOPPED)
            frames = await take(reader)
            assert b"".join(frames).count(last.rstrip(b"\n").rpartition(b"\n")[2]) == 1
            assert b"relay" not in frames[-1]
            status = await first.log.get_status(producer.stream)
            assert status is not None
            assert status.outcome == "completed"
            reader.close()

    asyncio.run(run())


def counted(owner: Any, name: str) -> list[tuple[Any, ...]]:
    """The calls of a method of a real object."""
    method, calls = getattr(owner, name), []

    async def call(*args: Any) -> Any:
        calls.append(args)
        return await method(*args)

    setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("when", ["after", "meanwhile", "before"])
def test_what_is_learnt_of_a_stream_reaches_the_store(store: Store, when: str, named: bool, moves: bool) -> None:
    """Another replica resumes with the upstream's headers, and says whose stream it was that it has ended."""

    async def scene(first: Replica) -> None:
        upstream, going_on = Upstream(), asyncio.Event()
        other = Route(UpstreamSettings(name="u2", base_url="http://u2", models=["m*"], headers=["kept"]), "m", "m*")
        route = Route(UpstreamSettings(name="u1", base_url="http://u1", headers=["kept"]), "m", "*", other)

        async def call(asking: Asking) -> Response:
            asking(route, False)
            await going_on.wait()
            if moves:
                asking(other, False)
            headers = [(b"content-type", b"text/event-stream"), *([(b"kept", b"yes")] if named else [])]
            return Response(200, AnswerHeaders(headers), upstream)

        learn = counted(first.log, "learn")
        create = Held(first.log, "create", answers=True)
        asked = Request("req_1", time.monotonic(), "m", None)
        producer = first.registry.begin(
            new_stream_id(), DIALECTS["chat"], route, owner=OWNER, request=asked, hide_usage=False, call=call
        )
        reader = first.lookup.first_reader(producer)
        if when == "before":
            going_on.set()
            create.released.set()
        making = asyncio.create_task(producer.ensure_created()) if when != "before" else None
        if when == "after":
            create.released.set()
            await producer.created
        elif when == "meanwhile":
            await create.reached.wait()
        going_on.set()
        await until(lambda: upstream._sink is not None, TIMEOUT)
        create.released.set()
        upstream.number(1, 1)
        await take(reader, 1)
        if making is not None:
            await making
        late = when != "before" and (named or moves)
        told = ("u2", "m*") if moves else ("u1", "*"), [(b"kept", b"yes")] if named else []

        async def stored() -> object:
            status = await first.log.get_status(producer.stream)
            return status and ((status.upstream, status.model), status.headers)

        await until_it_says(told, stored)
        assert bool(learn) == late  # what is known in time costs nothing more
        upstream.complete()
        await take(reader)
        reader.close()

    async def run() -> None:
        async with replica(store.url, abandon_after="never") as first:
            await scene(first)

    asyncio.run(run())


def test_what_a_store_that_was_away_has_not_taken_is_told_again(store: Store) -> None:
    async def scene(first: Replica) -> None:
        producer, reader = await first.begin(Upstream())
        learn, refused = first.log.learn, 0

        async def away(*args: object) -> None:
            nonlocal refused
            refused += 1
            raise StoreUnavailable

        first.log.learn = away  # type: ignore[assignment,method-assign]
        producer.kept_headers = [(b"kept", b"yes")]
        first.registry.on_answered(producer)
        await until(lambda: refused, TIMEOUT)
        first.log.learn = learn  # type: ignore[method-assign]
        await first.registry.renew_names()
        status = await first.log.get_status(producer.stream)
        assert status is not None
        assert status.headers == [(b"kept", b"yes")]
        # A server that has taken over may not have it.
        first.registry._on_store_returned()
        calls = counted(first.log, "learn")
        await first.registry.renew_names()
        await first.registry.renew_names()
        assert len(calls) == 1
        reader.close()

    async def run() -> None:
        async with replica(store.url, abandon_after="never") as first:
            await scene(first)

    asyncio.run(run())
