"""Connections over HTTP/1.1 from their beginning to their end, whatever the client and the application do meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from relay.http.contract import CLIENT, ConnectionCut
from relay.http.http1 import Http1
from tests.security.served import PATIENCE, Application, Peer, answer, served, until, whole_body

GET = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
MIB = 1 << 20


def post(length: int) -> bytes:
    return b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(4 * PATIENCE):
            await scene()

    uvloop.run(bounded())


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"%b %d;" % (scope["raw_path"], len(await whole_body(receive))))


# -- what the application does -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConnectionCut, RuntimeError])
def test_a_fault_while_much_of_a_body_is_unread_ends_the_connection(error: type[Exception]) -> None:
    """Who waits for room for what nobody will read goes on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await failing.wait()
        raise error

    async def scene() -> None:
        async with served(app) as site:
            peer = await site.connect()
            await peer.say(post(MIB))
            sending = asyncio.ensure_future(peer.say(bytes(MIB)))
            await asyncio.wait([sending], timeout=0.3)  # as much as there is room for
            failing.set()
            await site.all_over()
            sending.cancel()
            peer.close()

    failing = asyncio.Event()
    run(scene)


BROKEN: dict[str, tuple[Application, bytes]] = {}


def broken(name: str, heard: bytes) -> Callable[[Application], Application]:
    def keep(app: Application) -> Application:
        BROKEN[name] = (app, heard)
        return app

    return keep


@broken("nothing", b"HTTP/1.1 500 ")
async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


@broken("a fault", b"HTTP/1.1 500 ")
async def _fault(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError


@broken("a body without a head", b"HTTP/1.1 500 ")
async def _body(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"HTTP/1.1 200 OK\r\n\r\n", "more_body": True})


@broken("an end without a head", b"HTTP/1.1 500 ")
async def _end(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _start(status: int, *headers: tuple[bytes, bytes]) -> Application:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"hello", "more_body": False})

    return app


for _status in (100, 101, 103):
    broken(f"status {_status}", b"HTTP/1.1 500 ")(_start(_status))
for _length in (b"+5", b"5_0", b" 5", b"5, 5", b"0x5", b"", "٥".encode()):
    broken(f"length {_length!r}", b"HTTP/1.1 500 ")(_start(200, (b"content-length", _length)))
broken("two lengths", b"HTTP/1.1 500 ")(_start(200, (b"content-length", b"5"), (b"content-length", b"5")))
broken("more than it says", b"HTTP/1.1 200 ")(_start(200, (b"content-length", b"4")))
broken("less than it says", b"HTTP/1.1 200 ")(_start(200, (b"content-length", b"6")))


@broken("a fault amid its chunks", b"HTTP/1.1 200 ")
async def _amid(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello", "more_body": True})
    raise RuntimeError


@pytest.mark.parametrize("case", BROKEN)
def test_an_answer_that_is_none_is_its_connection_s_last(case: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "relay.http")
    app, heard = BROKEN[case]

    async def scene() -> None:
        async with served(app) as site:
            peer = await site.connect()
            await peer.say(GET + GET)
            data = await peer.hear()
            assert data.startswith(heard)
            assert data.count(b"HTTP/1.1 ") == 1
            assert not data.endswith(b"0\r\n\r\n")
            if heard.endswith(b"500 "):
                assert b"\r\nconnection: close\r\n" in data
                assert data.endswith(b"\r\n\r\n")
            await site.all_over()
            peer.close()

    run(scene)


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304), (b"HEAD", 404)])
@pytest.mark.parametrize("length", [None, b"5"])
def test_an_answer_without_a_body_has_none(method: bytes, status: int, length: bytes | None) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"] == b"/last":
            await answer(send)
        else:
            await _start(status, *([(b"content-length", length)] if length else []))(scope, receive, send)

    async def scene() -> None:
        async with served(app) as site:
            peer = await site.connect()
            await peer.say(GET.replace(b"GET", method) + LAST)
            data = await peer.hear()
            first, _, rest = data.partition(b"\r\n\r\n")
            assert first.startswith(b"HTTP/1.1 %d " % status)
            assert rest.startswith(b"HTTP/1.1 200 ")
            assert (b"transfer-encoding" in first) == (method == b"HEAD" and length is None)
            peer.close()

    run(scene)


# -- what the client does ----------------------------------------------------------------------------------


def test_a_reset_in_the_midst_of_a_write_ends_a_half_closed_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await answering.wait()
        peers[0].reset()  # the loop hears of it after the write
        while True:
            await send({"type": "http.response.body", "body": b"b", "more_body": True})
            await asyncio.sleep(0)

    async def scene() -> None:
        async with served(app) as site:
            peer = await site.connect()
            peers.append(peer)
            await peer.say(GET)
            peer.half_close()
            await peer.hear(b"1\r\na\r\n")
            (connection,) = site.server.connections
            await until(lambda: connection._half_closed)
            answering.set()
            await site.all_over()

    peers: list[Peer] = []
    answering = asyncio.Event()
    run(scene)


def test_who_waits_in_a_half_closed_connection_gets_all_answers() -> None:
    async def scene() -> None:
        async with served(echo) as site:
            peer = await site.connect()
            await peer.say(post(3) + b"abc" + GET)
            peer.half_close()
            data = await peer.hear()
            assert data.count(b"HTTP/1.1 200 ") == 2
            assert data.endswith(b"/x 0;")
            await site.all_over()
            peer.close()

    run(scene)


REQUESTS = (
    post(5) + b"hello" + b"POST /y HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GET
)


@pytest.mark.parametrize("end", ["half_close", "close", "reset"])
def test_a_client_may_leave_anywhere(end: str) -> None:
    """Between any two bytes of its requests: nothing of its connection is left."""

    async def scene() -> None:
        async with served(echo) as site:
            tasks = len(asyncio.all_tasks())
            for at in range(len(REQUESTS) + 1):
                peer = await site.connect()
                await peer.say(REQUESTS[:at])
                if at % 3 == 0:
                    await asyncio.sleep(0.002)
                getattr(peer, end)()
                if end == "half_close":
                    data = await peer.hear()
                    whole = sum(at >= length for length in (55, 55 + 74, len(REQUESTS)))
                    assert data.count(b"HTTP/1.1 200 ") in (whole, whole + 1), (at, data)
                    peer.close()
            await site.all_over()
            await until(lambda: len(asyncio.all_tasks()) == tasks)

    run(scene)


def test_a_body_that_nobody_reads_is_not_taken_either() -> None:
    """32 MiB: the server holds some hundreds of KiB of it, and the client's machine keeps the rest."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reading.wait()
        await echo(scope, receive, send)

    async def scene() -> None:
        async with served(app) as site:
            peer = await site.connect()
            await peer.say(post(32 * MIB))
            sending = asyncio.ensure_future(peer.say(bytes(32 * MIB)))
            done, _ = await asyncio.wait([sending], timeout=0.5)
            assert not done
            (connection,) = site.server.connections
            http1 = connection.protocol
            assert isinstance(http1, Http1)
            assert http1._cycle is not None
            held = len(http1.received.data) + http1._cycle._held
            assert held < MIB
            reading.set()
            assert (await peer.hear(b"/x 33554432;")).startswith(b"HTTP/1.1 200 ")
            await sending
            peer.close()

    reading = asyncio.Event()
    run(scene)


def test_a_client_that_leaves_is_told_of_once() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await whole_body(receive)
        gone = asyncio.Event()
        client = scope["state"][CLIENT]

        def call() -> None:
            told.append("called")
            gone.set()

        client.when_gone(call)
        listening.set()
        await gone.wait()
        assert (await receive())["type"] == client.here()["type"] == "http.disconnect"
        raise ConnectionCut

    async def scene() -> None:
        async with served(app) as site:
            for end in ("close", "reset"):
                peer = await site.connect()
                await peer.say(post(2) + b"ab")
                await listening.wait()
                listening.clear()
                getattr(peer, end)()
                await site.all_over()
            assert told == ["called"] * 2

    listening = asyncio.Event()
    run(scene)


@pytest.mark.parametrize("end", ["close", "reset"])
def test_also_one_that_has_sent_its_next_request_by_then(end: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["raw_path"])
        await whole_body(receive)
        scope["state"][CLIENT].when_gone(gone.set)
        listening.set()
        await gone.wait()
        raise ConnectionCut

    async def scene() -> None:
        async with served(app) as site:
            peer = await site.connect()
            await peer.say(GET + LAST)
            await listening.wait()
            getattr(peer, end)()
            await site.all_over()
            assert begun == [b"/x"]

    begun: list[bytes] = []
    gone, listening = asyncio.Event(), asyncio.Event()
    run(scene)
