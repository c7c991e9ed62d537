"""The upstream client: routing, and bodies that break off."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from relay.config import UpstreamSettings
from relay.protocol.errors import ModelNotFound, UpstreamUnreachable
from relay.upstream.client import UpstreamClient, body_of
from relay.upstream.routing import route_model
from tests.support.processes import free_port
from tests.support.scripted import Cut, End, Gate, Head, ScriptedUpstream, Send

ANY = UpstreamSettings(name="any", base_url="http://any")


def test_text_that_arrived_before_the_connection_died_is_not_lost(upstream: ScriptedUpstream) -> None:
    """Read only after the connection is known to be dead, as a busy process does."""
    upstream.on("m", Head(), Send(b"one "), Send(b"two "), Send(b"three"), Cut())

    async def read() -> tuple[bytes, bool]:
        client = UpstreamClient()
        response = await client.send(ANY, "POST", upstream.url + "/v1/chat/completions", [], b'{"model":"m"}')
        content = body_of(response)._content
        while content.exception() is None:  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(0)
        text, broke = b"", False
        try:
            async for chunk in body_of(response):
                text += chunk
        except httpx.ReadError:
            broke = True
        await client.close()
        return text, broke

    assert asyncio.run(asyncio.wait_for(read(), 10)) == (b"one two three", True)


class Heard:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.text = b""
        self.over: asyncio.Future[httpx.TransportError | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        assert not self.over.done()
        self.text += data

    def eof_received(self, error: httpx.TransportError | None) -> None:
        self.over.set_result(error)


@pytest.mark.parametrize("late", [False, True], ids=["as-it-arrives", "when-it-is-over"])
@pytest.mark.parametrize("size", [5, 1 << 20])  # a MiB is more than is read ahead
@pytest.mark.parametrize("last", [Cut(), End()], ids=["cut", "whole"])
def test_a_pushed_body_is_all_there_and_ends_once(
    upstream: ScriptedUpstream, last: Cut | End, late: bool, size: int
) -> None:
    upstream.on("m", Head(), Send(b"one "), *(() if late else (Gate("two"),)), Send(b"t" * size), Send(b"end"), last)

    async def push() -> tuple[bytes, httpx.TransportError | None]:
        client = UpstreamClient()
        response = await client.send(ANY, "POST", upstream.url + "/v1/chat/completions", [], b'{"model":"m"}')
        content = body_of(response)._content

        def has_read_all_it_will() -> bool:
            return content.over or content.stopped

        while late and not has_read_all_it_will():  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(0)
        heard = Heard()
        body_of(response).push_to(heard)
        upstream.open("two")
        error = await heard.over
        await client.close()
        return heard.text, error

    text, error = asyncio.run(asyncio.wait_for(push(), 10))
    assert text == b"one " + b"t" * size + b"end"
    assert isinstance(error, httpx.ReadError) if isinstance(last, Cut) else error is None


def test_an_upstream_that_was_made_to_wait_is_heard_to_its_end() -> None:
    """What comes after the wait comes in one piece, and nothing follows that would wake anybody."""
    went_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none \r\n")
        await went_on.wait()
        writer.write(b"4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")
        await reader.read()
        writer.close()

    async def wait() -> bytes:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = UpstreamClient()
        response = await client.send(ANY, "POST", f"http://127.0.0.1:{port}/v1/chat/completions", [], b'{"model":"m"}')
        body = body_of(response)
        heard = Heard()
        body.push_to(heard)
        body.pause()
        body.resume()
        went_on.set()
        try:
            assert await asyncio.wait_for(heard.over, 5) is None
        finally:
            await client.close()
            server.close()
            await server.wait_closed()
        return heard.text

    assert asyncio.run(wait()) == b"one two three"


def test_a_connection_whose_body_was_pushed_serves_the_next_call(upstream: ScriptedUpstream) -> None:
    for name in ("m1", "m2", "m3"):
        upstream.on(name, Head(), Send(b"all"), Gate(name), End())

    async def calls() -> list[bytes]:
        client = UpstreamClient()
        found = []
        for name in ("m1", "m2", "m3"):
            response = await client.send(ANY, "POST", upstream.url + "/v1/x", [], b'{"model":"%b"}' % name.encode())
            heard = Heard()
            body_of(response).push_to(heard)
            upstream.open(name)
            assert await heard.over is None
            found.append(heard.text)
            await body_of(response).aclose()
        await client.close()
        return found

    assert asyncio.run(asyncio.wait_for(calls(), 10)) == [b"all"] * 3
    assert len({call.port for call in upstream.calls}) == 1


def test_cookies_of_one_answer_never_go_out_with_the_next_request(upstream: ScriptedUpstream) -> None:
    upstream.on("m", Head(headers={"set-cookie": "session=1; Path=/"}), End())

    async def twice() -> None:
        client = UpstreamClient()
        for _ in range(2):
            response = await client.send(ANY, "POST", upstream.url + "/v1/x", [], b'{"model":"m"}')
            async for _ in body_of(response):
                pass
        await client.close()

    asyncio.run(asyncio.wait_for(twice(), 10))
    assert [call.header("cookie") for call in upstream.wait_calls(2)] == [None, None]


def test_an_upstream_that_is_not_there_is_named_as_such() -> None:
    async def call() -> None:
        client = UpstreamClient()
        try:
            await client.send(ANY, "POST", f"http://127.0.0.1:{free_port()}/v1/x", [], b"{}")
        finally:
            await client.close()

    with pytest.raises(UpstreamUnreachable, match="relay check"):
        asyncio.run(call())


def test_the_first_upstream_that_matches_takes_the_model() -> None:
    upstreams = [
        UpstreamSettings(name="a", base_url="http://a", apis=["messages"], models=["*"]),
        UpstreamSettings(name="b", base_url="http://b", apis=["chat"], models=["openai/*"], strip_prefix="openai/"),
        UpstreamSettings(name="c", base_url="http://c/prefix/", apis=["chat"], models=["gpt-*"]),
    ]
    found = route_model(upstreams, "chat", "openai/gpt-5")
    assert (found.upstream.name, found.model, found.pattern) == ("b", "gpt-5", "openai/*")
    assert route_model(upstreams, "chat", "gpt-5").url("/v1/x?y=1") == "http://c/prefix/v1/x?y=1"
    with pytest.raises(ModelNotFound):
        route_model(upstreams, "chat", "claude")
