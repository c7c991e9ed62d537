"""Hundreds of connections and requests that come at once: a few begin in each turn of the loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hyperframe.frame import SettingsFrame

from relay.config import LimitSettings
from relay.http import accepting, server
from relay.http.accepting import Accepting
from relay.http.beginnings import Beginnings
from relay.http.connection import Connection
from relay.http.heads import PREFACE
from relay.http.http1 import Http1
from relay.http.http2 import Http2
from tests.support.waiting import until

TIMEOUT = 10.0
ASKED = b"GET / HTTP/1.1\r\nhost: relay\r\n\r\n"
HTTP_2 = PREFACE + b"SM\r\n\r\n" + SettingsFrame(0).serialize()


def run(scene: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scene(), TIMEOUT))


class Turns:
    """Numbers the turns of the loop."""

    def __init__(self) -> None:
        self.number = 0
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.number += 1
        asyncio.get_running_loop().call_soon(self._next)


@pytest.mark.parametrize("between", [0, 1, 2])
@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_begin_in_one_turn_in_the_order_in_which_they_came(at_once: int, between: int) -> None:
    async def scene() -> None:
        beginnings, turns, begun = Beginnings(at_once, between), Turns(), []

        async def begin(n: int) -> None:
            await beginnings.turn("owner")
            begun.append((n, turns.number))

        await asyncio.gather(*(begin(n) for n in range(20)))
        assert [n for n, _ in begun] == list(range(20))
        numbers = [turn for _, turn in begun]
        assert max(numbers.count(turn) for turn in numbers) == at_once
        later = sorted(set(numbers[at_once:]))  # the first were not kept waiting
        assert {after - before for before, after in pairwise(later)} == {1 + between}

    run(scene)


def test_who_comes_alone_does_not_wait() -> None:
    async def scene() -> None:
        beginnings, turns = Beginnings(), Turns()
        for _ in range(3):
            before = turns.number
            await beginnings.turn("owner")
            assert turns.number == before
            for _ in range(3):
                await asyncio.sleep(0)

    run(scene)


def test_an_owner_with_one_request_waits_for_one_of_anothers_hundreds() -> None:
    async def scene() -> None:
        beginnings, begun = Beginnings(), []

        async def begin(owner: str) -> None:
            await beginnings.turn(owner)
            begun.append(owner)

        many = [asyncio.create_task(begin("many")) for _ in range(200)]
        one = asyncio.create_task(begin("one"))
        await asyncio.gather(one, *many)
        assert begun.index("one") <= 2

    run(scene)


def test_who_waits_no_more_takes_nobodys_turn() -> None:
    async def scene() -> None:
        beginnings, turns, begun = Beginnings(), Turns(), []

        async def begin(n: int) -> None:
            await beginnings.turn(n % 2)
            begun.append(turns.number)

        tasks = [asyncio.create_task(begin(n)) for n in range(40)]
        await asyncio.sleep(0)
        for task in tasks[3:35]:
            task.cancel()
        await asyncio.wait(tasks)
        assert len(begun) == 8
        assert begun[-1] - begun[0] <= 16
        await beginnings.turn("later")
        assert not beginnings._waiting

    run(scene)


def test_one_that_fails_as_it_begins_holds_up_nobody() -> None:
    async def scene() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
        beginnings = Beginnings()

        def fail() -> bool:
            raise ValueError

        for _ in range(2):
            await beginnings.turn("owner")
            beginnings.wait("owner", fail)
            await beginnings.turn("owner")
        beginnings.wait("owner", fail)
        await until(lambda: len(faults) == 3, TIMEOUT, "the faults")
        await beginnings.turn("owner")

    run(scene)


class Listener(socket.socket):
    """Notes in which turn of the loop each connection is taken, and fails as often as it is told to."""

    turns: Turns
    full = 0

    def accept(self) -> Any:
        if self.full:
            self.full -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        taken = super().accept()
        self.taken.append(self.turns.number)
        return taken

    def listening(self) -> None:
        self.taken: list[int] = []
        self.turns = Turns()
        self.bind(("127.0.0.1", 0))


def connected(listener: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def test_few_connections_are_taken_in_one_turn() -> None:
    async def scene() -> None:
        listener, made = Listener(), []
        listener.listening()
        taking = Accepting(listener, 128, lambda: made.append(1) or asyncio.Protocol())  # type: ignore[func-returns-value]
        clients = connected(listener, 50)
        await until(lambda: len(made) == 50, TIMEOUT, "all connections")
        assert max(listener.taken.count(turn) for turn in listener.taken) <= accepting._AT_ONCE
        await taking.stop()
        for client in clients:
            client.close()

    run(scene)


def test_connections_are_taken_again_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_PAUSE", 0.01)

    async def scene() -> None:
        listener, made = Listener(), []
        listener.listening()
        listener.full = 2
        taking = Accepting(listener, 128, lambda: made.append(1) or asyncio.Protocol())  # type: ignore[func-returns-value]
        clients = connected(listener, 5)
        await until(lambda: len(made) == 5, TIMEOUT, "all connections")
        await taking.stop()
        for client in clients:
            client.close()

    run(scene)


def test_what_the_kernel_has_accepted_is_taken_before_the_listener_closes() -> None:
    async def scene() -> None:
        listener, made = Listener(), []
        listener.listening()
        taking = Accepting(listener, 128, lambda: made.append(1) or asyncio.Protocol())  # type: ignore[func-returns-value]
        clients = connected(listener, 30)
        await taking.stop()
        assert len(made) == 30
        assert listener.fileno() == -1
        for client in clients:
            client.close()

    run(scene)


@asynccontextmanager
async def served(servers: list[server.Server] | None = None) -> AsyncIterator[tuple[str, int]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    over = asyncio.Event()

    async def until_over(serving: server.Server) -> None:
        if servers is not None:
            servers.append(serving)
        await over.wait()

    serving = asyncio.create_task(server.serve(app, listener, until_over, LimitSettings()))
    await asyncio.sleep(0)
    try:
        yield address
    finally:
        over.set()
        await serving


def connections() -> int:
    return sum(isinstance(each, Connection | Http1 | Http2) for each in gc.get_objects())


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("ends", ["closes", "resets"])
def test_a_connection_that_has_ended_leaves_nothing_for_the_collector(ends: str, version: str) -> None:
    async def ask(address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        if version == "2":
            writer.write(HTTP_2)
            await reader.readexactly(9)
        else:
            for _ in range(2):
                writer.write(ASKED)
                await reader.readuntil(b"ok")
        if ends == "closes":
            writer.close()
        else:
            writer.transport.abort()

    async def scene() -> None:
        async with served() as address:
            gc.collect()
            others = connections()  # of other tests, whose records of the log hold them
            gc.disable()
            for _ in range(10):
                await ask(address)
            await until(lambda: connections() <= others, TIMEOUT, "their end")

    try:
        run(scene)
    finally:
        gc.enable()


def test_hundreds_of_requests_at_once_are_all_answered() -> None:
    async def ask(address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"ok")
        writer.close()

    async def scene() -> None:
        async with served() as address:
            await asyncio.gather(*(ask(address) for _ in range(300)))

    run(scene)


def held_back(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], bool]]:
    """From now on no request has its turn: what begins each that waits, in the list once it does."""
    waiting: list[Callable[[], bool]] = []

    def wait(_: Beginnings, key: object, begin: Callable[[], bool]) -> None:
        waiting.append(begin)

    monkeypatch.setattr(Beginnings, "may_begin", lambda _: False)
    monkeypatch.setattr(Beginnings, "wait", wait)
    return waiting


def test_a_request_that_waits_for_its_turn_when_a_drain_begins_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CROSSING", 0.01)

    async def scene() -> None:
        servers: list[server.Server] = []
        async with served(servers) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(ASKED)
            await reader.readuntil(b"ok")
            waiting = held_back(monkeypatch)
            writer.write(ASKED)
            await until(lambda: waiting, TIMEOUT, "the request")
            await servers[0].drain(listening=False)
            for _ in range(20):
                await asyncio.sleep(0)
            assert waiting[0]()
            assert (await reader.read()).endswith(b"ok")
            writer.close()

    run(scene)


def test_an_end_that_comes_before_the_turn_of_a_client_of_http_2_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        servers: list[server.Server] = []
        async with served(servers) as address:
            waiting = held_back(monkeypatch)
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HTTP_2)
            writer.write_eof()
            await until(lambda: waiting, TIMEOUT, "the request")
            (connection,) = servers[0].connections
            await until(
                lambda: isinstance(connection.protocol, Http1) and connection.protocol.ended, TIMEOUT, "its end"
            )
            assert waiting[0]()
            await reader.read()
            writer.close()

    run(scene)
