"""How long an upstream may take to answer, and what does not count: this process's own pauses, and slow clients."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import uvloop

from relay.config import UpstreamSettings
from relay.protocol.errors import UpstreamTimeout
from relay.upstream.client import UpstreamClient, body_of

ANY = UpstreamSettings(name="any", base_url="http://any")
LIMIT = 0.3
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def upstream(serve: Serve, *, limit: int = 1 << 16) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=limit)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
    finally:
        server.close()


async def asked(serve: Serve, body: bytes | AsyncIterator[bytes] = b"{}", *, idle: float = 5.0) -> bytes:
    """The answer of an upstream that has LIMIT to answer."""
    client = UpstreamClient()
    async with upstream(serve, limit=1 << 10) as url:
        headers = [(b"content-length", b"%d" % len(body))] if isinstance(body, bytes) else []
        try:
            limit = ("unstreamed_answer_timeout", LIMIT)
            response = await client.send(ANY, "POST", url, headers, body, answer=limit, idle=idle)
            try:
                return b"".join([chunk async for chunk in body_of(response)])
            finally:
                await body_of(response).aclose()
        finally:
            await client.close()


def run(story: Awaitable[bytes]) -> bytes:
    async def bounded() -> bytes:
        return await asyncio.wait_for(story, 8)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # whose timers come before what it reads
        return runner.run(bounded())


async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(3)


def test_no_answer_at_all_names_the_limit_and_invites_nobody_to_pay_twice() -> None:
    with pytest.raises(UpstreamTimeout) as failed:
        run(asked(nothing))
    assert "unstreamed_answer_timeout (0.3 s)" in failed.value.message
    assert failed.value.headers["x-should-retry"] == "false"


def test_a_request_that_is_not_taken_is_no_answer_either() -> None:
    """It is longer than what sockets hold, so it is never sent to its end."""
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        run(asked(nothing, b"x" * (64 << 20)))
    assert time.monotonic() - began < 5


def test_a_request_that_is_taken_slowly_is_taken() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        began, left = time.monotonic(), 24 << 20
        while left:
            left -= len(await reader.read(1 << 20))
            if left % 7 == 0 or time.monotonic() - began < 4 * LIMIT:
                await asyncio.sleep(0.01)
        assert time.monotonic() - began > 2 * LIMIT
        writer.write(ANSWER)

    assert run(asked(serve, b"x" * (24 << 20))) == b"ok"


def test_a_client_that_sends_its_request_slowly_is_not_the_upstream_s_silence() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"x" * (8 << 20)
        await asyncio.sleep(3 * LIMIT)
        yield b"y"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not (await reader.read(1 << 20)).endswith(b"0\r\n\r\n"):
            pass
        writer.write(ANSWER)

    assert run(asked(serve, slowly())) == b"ok"


def test_the_head_s_limit_is_not_the_body_s() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER[:-2])
        await asyncio.sleep(3 * LIMIT)
        writer.write(b"ok")

    assert run(asked(serve)) == b"ok"
    with pytest.raises(httpx.ReadTimeout):
        run(asked(serve, idle=LIMIT))


@pytest.mark.parametrize("first", [b"", ANSWER[:-2]], ids=["head", "body"])
def test_a_process_that_was_stopped_reads_the_answer_that_came_meanwhile(first: bytes) -> None:
    """It was stopped after it had looked at its sockets, so it wakes up to its timers; the answer lies in a socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop, stopped = socket.socketpair()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(1 << 16)
        connection.sendall(first)
        time.sleep(LIMIT / 2)
        stop.send(b"x")
        time.sleep(LIMIT / 2)
        connection.sendall(ANSWER[len(first) :])
        connection.recv(1)
        connection.close()

    def stand_still() -> None:
        stopped.recv(1)
        time.sleep(2 * LIMIT)

    async def story() -> bytes:
        asyncio.get_running_loop().add_reader(stopped, stand_still)
        client = UpstreamClient()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/x"
        try:
            response = await client.send(ANY, "POST", url, [], b"{}", answer=("a", LIMIT), idle=LIMIT)
            return b"".join([chunk async for chunk in body_of(response)])
        finally:
            await client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert run(story()) == b"ok"
    finally:
        thread.join()
        for each in (listener, stop, stopped):
            each.close()
