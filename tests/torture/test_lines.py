"""The proxies: a replica never learns an address that would lead around them, wherever TCP cuts a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.torture.lines import Line, Mode, Proxy

SLOTS = b"*1\r\n*3\r\n:0\r\n:5460\r\n*4\r\n$9\r\n127.0.0.1\r\n:11111\r\n$40\r\n" + b"a" * 40 + b"\r\n*0\r\n"
REPLIES = [
    SLOTS,
    b"-MOVED 3999 127.0.0.1:11111\r\n",
    b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n11111\r\n",
    b"$2\r\nip\r\n$9\r\n127.0.0.1\r\n$4\r\nport\r\n$5\r\n11111\r\n$5\r\nflags\r\n$6\r\nmaster\r\n",
    b"*4\r\n$4\r\nport\r\n:11111\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n",
    b"$31\r\nid 127.0.0.1:11111@22222 myself\r\n",
]


async def _through(pieces: list[bytes], use: Callable[[Line, Proxy], None] | None = None) -> bytes:
    """What a client gets through a line whose server sends these pieces and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    line = Line([port])
    line._names[b"11111"] = b"33333"
    await line.start()
    try:
        if use is not None:
            use(line, line.proxies[port])
        reader, writer = await asyncio.open_connection("127.0.0.1", line.proxies[port].port)
        try:
            writer.write(b"?")
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.transport.abort()
    finally:
        await line.stop()
        server.close()
        await asyncio.sleep(0.05)  # the connections' ends


@pytest.mark.parametrize("reply", REPLIES, ids=range(len(REPLIES)))
def test_addresses_are_those_of_the_proxies(reply: bytes) -> None:
    wanted = reply.replace(b"11111", b"33333")
    assert asyncio.run(_through([reply])) == wanted
    at = reply.index(b"11111")
    for cut in (at - 12, at - 3, at, at + 2):
        assert asyncio.run(_through([reply[:cut], reply[cut:]])) == wanted


def test_everything_else_goes_through_as_it_is() -> None:
    data = bytes(range(256)) * 1000
    assert asyncio.run(_through([data])) == data


def test_what_a_blackhole_has_swallowed_never_comes() -> None:
    def use(line: Line, proxy: Proxy) -> None:
        proxy.mode = Mode("blackhole")
        asyncio.get_running_loop().call_later(0.2, lambda: lifting.append(asyncio.ensure_future(line.switch(Mode()))))

    lifting: list[asyncio.Future[None]] = []
    with pytest.raises(ConnectionResetError):
        asyncio.run(_through([b"+OK\r\n"], use))


def test_a_connection_is_cut_in_the_middle_of_an_answer() -> None:
    def use(line: Line, proxy: Proxy) -> None:
        proxy.cut = lambda: (3, "fin")

    assert asyncio.run(_through([b"abcdef"], use)) == b"abc"
