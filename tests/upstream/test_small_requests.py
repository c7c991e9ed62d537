"""A request on a kept connection: what is written, and what becomes of each answer, or of none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from relay.config import UpstreamSettings
from relay.protocol.errors import (
    ApiError,
    UpstreamDisconnected,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from relay.protocol.headers import Headers
from relay.upstream.client import UpstreamClient, body_of

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD: Headers = [(b"x-a", b"\xff b"), (b"content-length", b"4")]


class Server:
    """Answers the n-th request on each connection with the n-th script; None ends the connection."""

    def __init__(self, *scripts: bytes | None) -> None:
        self.scripts = scripts
        self.requests: list[bytes] = []
        self.connections = 0
        self.second = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        for script in self.scripts:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head + await reader.readexactly(4))
                if len(self.requests) == 2:
                    self.second.set()
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            if script is None:
                break
            writer.write(script)
        else:
            await reader.read(1)
        writer.close()


def run(server: Server, scene: Callable[[UpstreamClient, UpstreamSettings], Awaitable[None]]) -> None:
    async def whole() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        client = UpstreamClient()
        try:
            host, port = listening.sockets[0].getsockname()[:2]
            await scene(client, UpstreamSettings(name="u", base_url=f"http://{host}:{port}"))
        finally:
            await client.close()
            listening.close()

    asyncio.run(asyncio.wait_for(whole(), 20))


async def ask(
    client: UpstreamClient, upstream: UpstreamSettings, headers: Headers = HEAD, seconds: float = 10
) -> bytes:
    url = f"{upstream.base_url}/v1/x?a=%2F"
    response = await client.send(upstream, "POST", url, headers, b"body", answer=("some_timeout", seconds))
    return b"".join([part async for part in body_of(response)])


def test_it_is_written_as_it_is_and_the_connection_is_kept() -> None:
    server = Server(OK, OK, OK)

    async def scene(client: UpstreamClient, upstream: UpstreamSettings) -> None:
        assert [await ask(client, upstream) for _ in range(3)] == [b"ok"] * 3
        host = upstream.base_url.removeprefix("http://").encode()
        for request in server.requests[1:]:
            start, *fields = request.removesuffix(b"\r\n\r\nbody").split(b"\r\n")
            assert start == b"POST /v1/x?a=%2F HTTP/1.1"
            assert fields == [b"host: " + host, b"x-a: \xff b", b"content-length: 4"]

    run(server, scene)
    assert server.connections == 1


def test_an_address_that_is_no_ascii_is_written_as_it_is() -> None:
    server = Server(OK, OK)

    async def scene(client: UpstreamClient, upstream: UpstreamSettings) -> None:
        for _ in range(2):
            response = await client.send(upstream, "POST", f"{upstream.base_url}/v1/\xe4", HEAD, b"body")
            assert [part async for part in body_of(response)] == [b"ok"]

    run(server, scene)
    assert [request.split(b" ", 2)[1] for request in server.requests] == ["/v1/\xe4".encode()] * 2


def test_what_does_not_say_how_long_it_is_is_told() -> None:
    server = Server(OK, OK)

    async def scene(client: UpstreamClient, upstream: UpstreamSettings) -> None:
        for _ in range(2):
            assert await ask(client, upstream, []) == b"ok"

    run(server, scene)
    assert b"\r\ncontent-length: 4\r\n" in server.requests[1]


INTERIM = b"HTTP/1.1 103 -\r\nlink: x\r\n\r\n"


def test_an_answer_may_announce_itself() -> None:
    async def scene(client: UpstreamClient, upstream: UpstreamSettings) -> None:
        assert [await ask(client, upstream) for _ in range(2)] == [b"ok"] * 2

    run(Server(OK, INTERIM * 3 + OK), scene)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (None, UpstreamDisconnected),
        (b"nonsense\r\n\r\n", UpstreamMalformed),
        (b"HTTP/1.1 200 OK\r\nx y: z\r\n\r\n", UpstreamMalformed),
        (b"HTTP/1.1 600 -\r\n\r\n", UpstreamMalformed),
        (b"HTTP/1.1 101 -\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", UpstreamMalformed),
        (b"", UpstreamTimeout),
    ],
)
def test_what_is_no_answer_is_told_and_nothing_is_sent_twice(script: bytes | None, error: type[ApiError]) -> None:
    server = Server(OK, script)

    async def scene(client: UpstreamClient, upstream: UpstreamSettings) -> None:
        assert await ask(client, upstream) == b"ok"
        with pytest.raises(error):
            await ask(client, upstream, seconds=0.2 if error is UpstreamTimeout else 10)
        assert len(server.requests) == 2
        assert await ask(client, upstream) == b"ok"  # on a connection of its own

    run(server, scene)
    assert (len(server.requests), server.connections) == (3, 2)


@pytest.mark.parametrize("header", [(b"x-a", b"b\r\nx-b: c"), (b"x-a\r\nx-b", b"c"), (b"x a", b"b"), (b"x-a", b"\0")])
def test_no_header_is_two(header: tuple[bytes, bytes]) -> None:
    server = Server(OK, OK)

    async def scene(client: UpstreamClient, upstream: UpstreamSettings) -> None:
        assert await ask(client, upstream) == b"ok"
        with pytest.raises(UpstreamUnreachable):
            await ask(client, upstream, [header])

    run(server, scene)
    assert len(server.requests) == 1


def test_who_is_no_longer_waited_for_has_its_connection_ended() -> None:
    server = Server(OK, b"", OK)

    async def scene(client: UpstreamClient, upstream: UpstreamSettings) -> None:
        assert await ask(client, upstream) == b"ok"
        asking = asyncio.ensure_future(ask(client, upstream))
        await server.second.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await ask(client, upstream) == b"ok"

    run(server, scene)
    assert server.connections == 2
