"""The server's HTTP/1.1 under small applications: what each of them makes its client see."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.api.presence import Presence
from relay.config import LimitSettings
from relay.http.contract import CLIENT, CONNECTION, ConnectionCut
from relay.http.server import Server

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
Scene = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [*headers, (b"date", b"now")]}


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def answers(*messages: Message, error: Exception | None = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


def run(app: ASGIApp, scene: Scene, limits: LimitSettings | None = None) -> None:
    async def whole() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(app, listener, limits or LimitSettings())
        await server.start()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            await scene(reader, writer)
        finally:
            writer.close()
            await server.close()

    asyncio.run(asyncio.wait_for(whole(), 60))


def heard(app: ASGIApp, *sent: bytes, half_closed: bool = False) -> bytes:
    """All that a client is told until the connection ends."""
    found = b""

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal found
        for data in sent:
            writer.write(data)
            await writer.drain()
        if half_closed:
            writer.write_eof()
        found = await reader.read()

    run(app, scene)
    return found


OK = answers(start(), part(b"ok"), part(b"", more=False))
CHUNKED = b"HTTP/1.1 200 \r\ndate: now\r\ntransfer-encoding: chunked\r\n"
REFUSED = b"content-length: 0\r\nconnection: close\r\n"


def test_an_answer_without_a_length_comes_in_chunks() -> None:
    assert heard(OK, LAST) == CHUNKED + b"connection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"


def test_an_answer_to_http_1_0_ends_with_its_connection() -> None:
    assert heard(OK, b"GET / HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 \r\ndate: now\r\nconnection: close\r\n\r\nok"


def test_requests_are_answered_one_after_the_other() -> None:
    assert heard(OK, GET + GET + LAST).count(b"2\r\nok\r\n0\r\n\r\n") == 3


def test_those_that_were_sent_before_half_a_close_are_all_answered() -> None:
    assert heard(OK, GET + GET, half_closed=True).count(b"2\r\nok\r\n0\r\n\r\n") == 2


@pytest.mark.parametrize("status", [204, 304])
def test_some_have_no_body(status: int) -> None:
    found = heard(answers(start(status), part(b"", more=False)), LAST)
    assert found == b"HTTP/1.1 %d \r\ndate: now\r\nconnection: close\r\n\r\n" % status


def test_nor_has_what_head_asks_for() -> None:
    app = answers(start(200, (b"content-length", b"2")), part(b"ok", more=False))
    found = heard(app, LAST.replace(b"GET", b"HEAD"))
    assert found.endswith(b"content-length: 2\r\ndate: now\r\nconnection: close\r\n\r\n")


@pytest.mark.parametrize("body", [b"o", b"oki"])
def test_a_body_that_is_not_as_long_as_it_says_is_cut(body: bytes) -> None:
    app = answers(start(200, (b"content-length", b"2")), part(body), part(b"", more=False))
    assert heard(app, GET + GET).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("error", [None, ConnectionCut(), ValueError()])
def test_an_application_that_leaves_without_an_answer_has_failed(error: Exception | None) -> None:
    found = heard(answers(error=error), GET + GET)
    assert found.startswith(b"HTTP/1.1 500 \r\n" + REFUSED)
    assert found.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("error", [None, ConnectionCut(), ValueError()])
def test_and_one_that_leaves_its_answer_cuts_it(error: Exception | None) -> None:
    found = heard(answers(start(), part(b"ok"), error=error), GET + GET)
    assert found == CHUNKED + b"\r\n2\r\nok\r\n"


def test_no_header_is_two() -> None:
    found = heard(answers(start(200, (b"x-a", b"b\r\nx-b: c"))), GET)
    assert found.startswith(b"HTTP/1.1 500 ")
    assert b"x-b" not in found


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    await send(start(200, (b"content-length", b"%d" % len(body))))
    await send(part(body, more=False))


POST = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


def test_a_body_arrives_whole_however_it_is_sent() -> None:
    body = bytes(range(256)) * 2000
    head = POST + b"content-length: %d\r\n\r\n" % len(body)
    assert heard(echo, head, *(body[i : i + 70_000] for i in range(0, len(body), 70_000))).endswith(body)


def test_who_waits_to_be_told_to_go_on_is_told() -> None:
    found = heard(echo, POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n", b"ok")
    assert found.startswith(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 \r\n")


def test_a_body_that_nobody_reads_ends_the_connection_with_the_answer() -> None:
    assert heard(OK, POST.replace(b"connection: close\r\n", b"") + b"content-length: 9\r\n\r\n").endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("end", ["close", "abort"])
def test_an_application_is_told_once_when_its_client_hangs_up(end: str) -> None:
    told: list[int] = []
    begun, gone, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def tell() -> None:
        told.append(1)
        gone.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["state"][CLIENT].when_gone(tell)
        begun.set()
        await gone.wait()
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(ConnectionCut):
            await send(start())
        told.append(2)
        over.set()

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(POST + b"content-length: 0\r\n\r\n")
        await begun.wait()
        if end == "abort":
            writer.transport.abort()
        else:
            writer.close()
        await gone.wait()
        await over.wait()

    run(app, scene)
    assert told == [1, 2]


def test_a_large_part_for_a_client_that_has_gone_is_cut() -> None:
    found: list[BaseException] = []

    async def scene() -> None:
        gone, over = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"][CLIENT].when_gone(gone.set)
            await send(start())
            await gone.wait()
            await asyncio.sleep(0.01)  # the transport's own end comes after it
            try:
                await scope["state"][CONNECTION].direct.send(bytes(100_000))
            except Exception as error:
                found.append(error)
            over.set()

        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(app, listener, LimitSettings())
        await server.start()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        resets = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, resets)
        writer.transport.abort()
        await over.wait()
        await server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # whose closed transports take nothing
        runner.run(asyncio.wait_for(scene(), 60))
    assert [type(error) for error in found] == [ConnectionCut]


def test_what_is_cut_as_it_is_sent_ends_undisturbed() -> None:
    ended: list[str] = []
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            try:
                await send(start())
                scope["state"][CONNECTION].abort()  # as what fails to be written does: its end is told of later
                await send(part(b"ok"))
            finally:
                await asyncio.sleep(0.01)
                ended.append("work")

        await receive()
        try:
            with pytest.raises(ConnectionCut):
                await Presence(scope["state"][CLIENT], receive).unless_gone(work())
        finally:
            over.set()

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET)
        await over.wait()

    run(app, scene)
    assert ended == ["work"]


def test_an_idle_connection_ends_after_its_own_time_whatever_was_asked_before() -> None:
    ended: list[float] = []

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(GET)
            await reader.readuntil(b"0\r\n\r\n")
            await asyncio.sleep(0.2)  # the timer of the first one is due within the third
        began = asyncio.get_running_loop().time()
        assert await reader.read() == b""
        ended.append(asyncio.get_running_loop().time() - began)

    run(OK, scene, LimitSettings(idle_timeout=0.5))
    assert ended[0] >= 0.25


def test_one_that_brings_no_request_ends_too() -> None:
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HT")
        assert await reader.read() == b""

    run(OK, scene, LimitSettings(read_timeout=0.2))
