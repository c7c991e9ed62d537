"""A client that hangs up is told of by a call, and by a task that reads where the server does not call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import Message

from relay.api.presence import Presence
from relay.http.contract import ConnectionCut


class Server:
    """A client's request at a server that calls, or does not."""

    def __init__(self, *, calls: bool) -> None:
        self.call: Callable[[], None] | None = None
        self.is_gone = False
        self._gone = asyncio.Event()
        self.presence = Presence(self if calls else None, self.receive)

    def here(self) -> Message | None:
        return None

    def when_gone(self, call: Callable[[], None] | None) -> None:
        self.call = call
        if self.is_gone and call is not None:
            call()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def hang_up(self) -> None:
        self.is_gone = True
        self._gone.set()
        if self.call is not None:
            call, self.call = self.call, None
            call()


both_ways = pytest.mark.parametrize("calls", [True, False])


@both_ways
def test_work_that_ends_first_gives_its_result(calls: bool) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        assert await server.presence.unless_gone(asyncio.sleep(0, "done")) == "done"
        server.hang_up()
        await asyncio.sleep(0)
        assert not server.presence.gone  # nobody asks any more

    asyncio.run(scene())


@both_ways
def test_work_is_cancelled_where_the_client_goes_first(calls: bool) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        cancelled = asyncio.Event()

        async def work() -> None:
            asyncio.get_running_loop().call_soon(server.hang_up)
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(ConnectionCut):
            await server.presence.unless_gone(work())
        assert cancelled.is_set()
        assert server.presence.gone
        assert not task.cancelling()
        await asyncio.sleep(0)  # the cancellation is spent

    asyncio.run(scene())


@pytest.mark.parametrize("way", ["returns", "raises"])
def test_work_that_ends_by_itself_when_it_is_cancelled_is_cut_all_the_same(way: str) -> None:
    async def scene() -> None:
        server = Server(calls=True)

        async def work() -> str:
            asyncio.get_running_loop().call_soon(server.hang_up)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if way == "raises":
                    raise ValueError from None
            return "a result that nobody wants"

        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(ConnectionCut):
            await server.presence.unless_gone(work())
        assert not task.cancelling()

    asyncio.run(scene())


@both_ways
@pytest.mark.parametrize("turn", range(9))
def test_a_client_may_go_at_any_turn_of_the_loop(turn: int, calls: bool) -> None:
    """The work ends with its result, or was cut once, and nothing of that is left."""

    async def scene() -> None:
        server = Server(calls=calls)
        ends: list[str] = []

        async def work() -> str:
            try:
                for _ in range(4):
                    await asyncio.sleep(0)
                return "done"
            finally:
                await asyncio.sleep(0)
                ends.append("ended")

        async def leave() -> None:
            for _ in range(turn):
                await asyncio.sleep(0)
            server.hang_up()

        task = asyncio.current_task()
        assert task is not None
        leaving = asyncio.ensure_future(leave())
        try:
            assert await server.presence.unless_gone(work()) == "done"
            assert not server.presence.gone
        except ConnectionCut:
            assert server.presence.gone
        await leaving
        for _ in range(4):
            await asyncio.sleep(0)
        assert len(ends) <= 1
        assert task.cancelling() == 0
        asked: list[str] = []
        server.presence.when_gone(lambda: asked.append("gone"))
        for _ in range(4):
            await asyncio.sleep(0)
        assert asked == ["gone"]

    asyncio.run(scene())


@pytest.mark.parametrize("way", ["returns", "raises", "goes on"])
def test_work_that_finds_by_itself_that_the_client_has_gone_ends_as_it_likes(way: str) -> None:
    """What it sends may be what shows it: no cancellation is left for what comes behind."""

    async def scene() -> None:
        server = Server(calls=True)
        ended: list[str] = []

        async def work() -> str:
            try:
                server.hang_up()
                if way == "raises":
                    raise ConnectionCut
                if way == "goes on":
                    await asyncio.sleep(0)
                return "a result that nobody wants"
            finally:
                await asyncio.sleep(0)  # a connection is closed, say
                ended.append(way)

        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(ConnectionCut):
            await server.presence.unless_gone(work())
        await asyncio.sleep(0)
        assert (ended, server.presence.gone, task.cancelling()) == ([way], True, 0)

    asyncio.run(scene())


def test_who_has_gone_before_gets_no_work_done() -> None:
    async def scene() -> None:
        server = Server(calls=True)
        server.hang_up()
        begun = False

        async def work() -> None:
            nonlocal begun
            begun = True

        with pytest.raises(ConnectionCut):
            await server.presence.unless_gone(work())
        assert not begun

    asyncio.run(scene())


@both_ways
def test_another_s_cancellation_stays_one(calls: bool) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        task = asyncio.ensure_future(server.presence.unless_gone(asyncio.sleep(60)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())


def test_a_cancellation_at_the_moment_of_a_hang_up_stays_one() -> None:
    async def scene() -> None:
        server = Server(calls=True)
        task = asyncio.ensure_future(server.presence.unless_gone(asyncio.sleep(60)))
        await asyncio.sleep(0)
        task.cancel()
        server.hang_up()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())


@both_ways
def test_whoever_asked_last_is_called_and_nobody_else(calls: bool) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        called: list[int] = []
        server.presence.when_gone(lambda: called.append(1))
        server.presence.when_gone(lambda: called.append(2))
        await asyncio.sleep(0)
        server.hang_up()
        for _ in range(3):
            await asyncio.sleep(0)
        assert called == [2]
        server.presence.when_gone(lambda: called.append(3))
        assert called == [2, 3]

    asyncio.run(scene())


@both_ways
@pytest.mark.parametrize("seconds", [None, 60])
def test_what_is_waited_for_is_waited_for_no_longer(calls: bool, seconds: float | None) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        awaited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(server.presence.wait_for(awaited, seconds))
        await asyncio.sleep(0)
        assert not waiting.done()
        awaited.set_result("done")
        await waiting
        assert server.call is None
        await server.presence.wait_for(awaited, seconds)  # it is done by now

    asyncio.run(scene())


@both_ways
def test_what_takes_too_long_goes_on_unwaited_for(calls: bool) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        awaited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await server.presence.wait_for(awaited, 0.01)
        assert not awaited.done()

    asyncio.run(scene())


@both_ways
@pytest.mark.parametrize("ends", [True, False], ids=["as it ends", "first"])
def test_a_client_that_goes_meanwhile_is_cut(calls: bool, ends: bool) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        awaited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(server.presence.wait_for(awaited, 60))
        await asyncio.sleep(0)
        server.hang_up()
        if ends and calls:  # a task that reads hears of it only later
            awaited.set_result("done")
        with pytest.raises(ConnectionCut):
            await waiting
        assert not awaited.cancelled()

    asyncio.run(scene())


@both_ways
def test_another_s_cancellation_ends_the_wait_alone(calls: bool) -> None:
    async def scene() -> None:
        server = Server(calls=calls)
        awaited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(server.presence.wait_for(awaited, 60))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert server.call is None
        assert not awaited.cancelled()

    asyncio.run(scene())
