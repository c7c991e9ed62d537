"""What comes on an upstream's connection, beside what aiohttp's own parser makes of it, and what that leaves open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from relay.upstream.content import READ_AHEAD
from relay.upstream.decoding import Decoding
from relay.upstream.reading import MAX_LINE, Handler

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
STARTS = (
    *(OK, b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 No\r\n", b"HTTP/1.1 304 x\r\n", b"HTTP/1.1 404\r\n"),
    *(b"HTTP/1.1 600 x\r\n", b"HTTP/2.0 200 OK\r\n", b"HTTP/1.2 200 OK\r\n", b"http/1.1 200 OK\r\n"),
    *(b"HTTP/1.1 20 OK\r\n", b"HTTP/1.1 2000 OK\r\n", b"HTTP/1.1  200 OK\r\n", b"HTTP/1.1 200 OK\n"),
    *(b"\r\nHTTP/1.1 200 OK\r\n", b"ICY 200 OK\r\n", b"HTTP/1.1 200 \xff\r\n"),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 -\r\nlink: x\r\ncontent-length: 9\r\n\r\nHTTP/1.1 200 OK\r\n",
)
FRAMINGS = (
    *(b"", b"content-length: 5\r\n", b"Content-Length: 0\r\n", b"content-length:\r\n", b"content-length: -1\r\n"),
    *(b"content-length: 5, 5\r\n", b"content-length: 5\r\ncontent-length: 5\r\n", b"content-length: 0x5\r\n"),
    *(b"content-length: 99999999999999999999999\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n"),
    *(b"Transfer-Encoding: gzip, Chunked\r\n", b"transfer-encoding: chunked, gzip\r\n", b"transfer-encoding: gzip\r\n"),
    b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
    b"transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n",
    *(
        b"transfer-encoding: chunked, chunked\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunkedx\r\n",
    ),
    *(b"transfer-encoding: chunked \r\n", b"transfer-encoding: ,chunked\r\n", b"transfer-encoding: chunked,\r\n"),
    b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    *(b"connection: close\r\ncontent-length: 5\r\n", b"connection: close\r\ntransfer-encoding: chunked\r\n"),
    b"connection: upgrade\r\nupgrade: x\r\ncontent-length: 5\r\n",
    *(b"content-length : 5\r\n", b"transfer-encoding : chunked\r\n"),
)
FIELDS = (
    *(b"x y: z\r\n", b"x: a\0b\r\n", b"x: a\r\n b\r\n", b": z\r\n", b"x\r\n", b"x : z\r\n", b"x: \xff\xfe\r\n"),
    *(b"x: a\x01b\r\n", b"x:   a  \t\r\nX-B:\r\n", b"x: a\n", b"x: a\r", b" x: a\r\n", b"x\xff: a\r\n"),
    *(b"a: 1\r\nA: 2\r\na: 3\r\n", b"x: " + b"v" * 300 + b"\r\n", b"set-cookie: a\r\nset-cookie: b\r\n"),
)
BODIES = (
    *(b"", b"hello", b"hell", b"hello world", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\nmore"),
    *(b"5\r\nhello\r\n", b"5\r\nhel", b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"5\r\nhello\r\n0\r\nx: y\r\nz: w\r\n\r\n"),
    *(b"5\r\nhello\r\n0\r\nx y\r\n\r\n", b"5\r\nhelloo\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"g\r\nhello\r\n"),
    *(b"-5\r\nhello\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b" 5\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n"),
    *(
        b"ffffffffffffffffff\r\nhello",
        b"1\r\nh\r\n4\r\nello\r\n000\r\n\r\n",
        b"0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
    ),
    *(b"5\r\nhello\r\n0\r\n\r\n\r\n", b"5\r\nhello\r\n0\r\ncontent-length: 9\r\n\r\n"),
    *(b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n', b"5\r\rhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nx: a\0b\r\n\r\n"),
)
ANSWERS = (
    *(OK + framing + b"\r\n" + body for framing in FRAMINGS for body in BODIES),
    *(start + framing + b"\r\n" + body for start in STARTS for framing in FRAMINGS[:10] for body in BODIES[:7]),
    *(OK + field + b"content-length: 5\r\n\r\nhello" for field in FIELDS),
    *(OK[:at] for at in range(len(OK))),
    *((OK + FIELDS[8] + b"content-length: 5\r\n\r\nhello")[:at] for at in range(70)),
)


class Line(asyncio.Transport):
    """Of a connection: what is done to it."""

    closed = paused = False
    sent = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def write(self, data: Any) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Heard:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.text = b""
        self.ends: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        assert not self.ends
        self.text += data

    def eof_received(self, error: Exception | None) -> None:
        self.ends.append(error)


def play(handler: ResponseHandler, reads: Sequence[bytes], end: Exception | None) -> tuple[Any, ...]:
    """What is known of an answer: (status, headers, body, whether it is whole), or why there is none; and whether its
    connection may not be used again, where it is whole before the connection ends."""
    line = Line()
    handler.connection_made(line)
    handler.set_response_params(
        read_until_eof=True,
        auto_decompress=False,
        read_bufsize=1 << 20,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
    )
    answered: Any = None
    useless = None
    for read in reads:
        if line.closed:
            break
        handler.data_received(read)
        while handler._buffer:
            found: Any = handler._buffer.popleft()[0]
            answered = found if answered is None or answered[0].code < 200 else answered
    if answered is not None and answered[0].code >= 200:
        content = answered[1]
        over = content.over if isinstance(handler, Handler) else content.is_eof()
        if over and content.exception() is None:
            useless = handler.should_close or line.closed
    handler.connection_lost(end)
    if answered is None or answered[0].code < 200:
        return "malformed" if isinstance(handler.exception(), HttpProcessingError) else "gone", useless
    message, content = answered
    if isinstance(handler, Handler):
        heard = Heard()
        content.push_to(heard)
        assert len(heard.ends) == 1
        body, whole = heard.text, heard.ends == [None]
    else:
        whole = content.is_eof() and content.exception() is None and (end is None or useless is not None)
        content.set_exception(None)
        body = content.read_nowait()
    headers = [(name.lower().rstrip(b" "), value) for name, value in message.raw_headers]
    return message.code, headers, body, whole, useless


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def by_aiohttp(reads: Sequence[bytes], end: Exception | None) -> tuple[Any, ...]:
    """aiohttp drops a whole answer for what follows it in the same read."""
    loop = asyncio.get_running_loop()
    alone = play(ResponseHandler(loop), bytewise(b"".join(reads)), end)
    return alone if alone[-1] is not None else play(ResponseHandler(loop), reads, end)


@pytest.mark.parametrize("end", [None, ConnectionResetError("reset")], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "split",
    [lambda data: [data], bytewise],
    ids=["at-once", "byte-by-byte"],
)
def test_an_answer_is_what_aiohttp_makes_of_it(split: Callable[[bytes], list[bytes]], end: Exception | None) -> None:
    async def compare() -> None:
        loop = asyncio.get_running_loop()
        for answer in ANSWERS:
            reads = split(answer)
            assert play(Handler(loop), reads, end) == by_aiohttp(reads, end), answer

    asyncio.run(compare())


def test_an_answer_in_two_reads_is_what_aiohttp_makes_of_it() -> None:
    async def compare() -> None:
        loop = asyncio.get_running_loop()
        for body in BODIES:
            answer = CHUNKED + body
            for at in range(len(answer)):
                reads = [answer[:at], answer[at:]]
                assert play(Handler(loop), reads, None) == by_aiohttp(reads, None), reads

    asyncio.run(compare())


def scene(story: Callable[[Handler, Line], None]) -> None:
    async def told() -> None:
        handler, line = Handler(asyncio.get_running_loop()), Line()
        handler.connection_made(line)
        handler.set_response_params()
        story(handler, line)

    asyncio.run(told())


def answer_of(handler: Handler) -> Any:
    return handler._buffer.popleft()[0]


def test_what_follows_an_answer_is_never_the_next_one() -> None:
    def story(handler: Handler, line: Line) -> None:
        handler.data_received(OK + b"content-length: 2\r\n\r\nok")
        assert answer_of(handler)[1].over
        assert not handler.should_close
        handler.data_received(b"HTTP/1.1 200 OK\r\n")
        assert line.closed
        assert handler.should_close
        assert not handler._buffer

    scene(story)


def test_an_answer_may_come_before_it_is_asked_for() -> None:
    async def told() -> None:
        handler = Handler(asyncio.get_running_loop())
        handler.connection_made(Line())
        handler.data_received(b"HTTP/1.1 503 -\r\ncontent-length: 2\r\n\r\nno")
        head, content = await handler.ask(b"", None)
        heard = Heard()
        content.push_to(heard)
        assert (head.code, heard.text, heard.ends) == (503, b"no", [None])

    asyncio.run(told())


def test_a_connection_that_is_gone_before_it_is_used_is_told() -> None:
    async def told() -> None:
        handler = Handler(asyncio.get_running_loop())
        handler.connection_made(Line())
        handler.connection_lost(None)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await handler.ask(b"", None)

    asyncio.run(told())


@pytest.mark.parametrize("more", [OK + b"content-length: 2\r\n\r\nno", b"no", OK[:3]])
@pytest.mark.parametrize(
    "answer", [OK + b"content-length: 2\r\n\r\nok", CHUNKED + b"2\r\nok\r\n0\r\n\r\n"], ids=["length", "chunks"]
)
def test_what_follows_an_answer_in_the_same_read_leaves_it_whole(answer: bytes, more: bytes) -> None:
    """A server that refuses a request before it has read it answers what is left of that, too."""

    def story(handler: Handler, line: Line) -> None:
        handler.data_received(answer + more)
        assert line.closed
        assert handler.should_close
        content = answer_of(handler)[1]
        assert not handler._buffer
        heard = Heard()
        content.push_to(heard)
        assert (heard.text, heard.ends) == (b"ok", [None])

    scene(story)


def test_an_answer_to_head_has_no_body_whatever_its_length_says() -> None:
    def story(handler: Handler, line: Line) -> None:
        handler.set_response_params(skip_payload=True)
        handler.data_received(OK + b"content-length: 5\r\n\r\nhello")
        head, content = answer_of(handler)
        heard = Heard()
        content.push_to(heard)
        assert (head.code, heard.text, heard.ends) == (200, b"", [None])
        assert handler.should_close  # what follows would be taken for the next answer

    scene(story)


@pytest.mark.parametrize(
    "endless",
    [
        (b"x: ", b"y" * 1000),
        (b"x" * 10, b"y" * 1000),
        (b"", b"".join(b"x%d: y\r\n" % n for n in range(129))),
        (b"", b"x: " + b"y" * MAX_LINE + b"\r\n"),
    ],
    ids=["value", "name", "lines", "line"],
)
@pytest.mark.parametrize("before", [OK, CHUNKED + b"2\r\nok\r\n0\r\n"], ids=["head", "trailer"])
def test_an_endless_head_or_trailer_is_given_up(before: bytes, endless: tuple[bytes, bytes]) -> None:
    def story(handler: Handler, line: Line) -> None:
        handler.data_received(before)
        content = answer_of(handler)[1] if handler._buffer else None
        handler.data_received(endless[0])
        sent = 0
        while not line.closed and sent < 3 * MAX_LINE:
            handler.data_received(endless[1])
            sent += len(endless[1])
        assert line.closed
        if content is None:
            assert isinstance(handler.exception(), HttpProcessingError)
        else:
            heard = Heard()
            content.push_to(heard)
            assert heard.text == b"ok"
            assert isinstance(heard.ends[0], Exception)

    scene(story)


def test_a_chunk_s_extension_is_bounded() -> None:
    def story(handler: Handler, line: Line) -> None:
        handler.data_received(CHUNKED + b"2;a=")
        for _ in range(3):
            handler.data_received(b"b" * MAX_LINE)
        assert line.closed

    scene(story)


def test_an_upstream_waits_while_nobody_takes_its_body_and_its_connection_does_not_wait_for_the_next() -> None:
    def story(handler: Handler, line: Line) -> None:
        handler.data_received(OK + b"content-length: %d\r\n\r\n" % (3 * READ_AHEAD))
        content = answer_of(handler)[1]
        handler.data_received(b"x" * (2 * READ_AHEAD))
        assert not line.paused
        handler.data_received(b"x")
        assert line.paused
        handler.data_received(b"x" * (READ_AHEAD - 1))
        assert not line.paused
        assert content.over
        assert not handler.should_close

    scene(story)


def test_a_malformed_body_is_over_at_once() -> None:
    """aiohttp tells nobody."""

    def story(handler: Handler, line: Line) -> None:
        handler.data_received(CHUNKED)
        content = answer_of(handler)[1]
        heard = Heard()
        content.push_to(heard)
        handler.data_received(b"2\r\nok\r\nx")
        assert heard.text == b"ok"
        assert isinstance(heard.ends[0], Exception)
        assert line.closed
        handler.connection_lost(None)
        assert len(heard.ends) == 1

    scene(story)


def test_an_answer_that_only_announces_itself_is_none() -> None:
    def story(handler: Handler, line: Line) -> None:
        for _ in range(65):
            assert not line.closed
            handler.data_received(b"HTTP/1.1 102 -\r\n\r\n")
        assert line.closed
        assert isinstance(handler.exception(), HttpProcessingError)

    scene(story)


def test_who_closes_a_body_hears_no_more_of_it() -> None:
    def story(handler: Handler, line: Line) -> None:
        handler.data_received(CHUNKED)
        content = answer_of(handler)[1]
        heard = Heard()
        content.push_to(heard)
        content.close()
        handler.data_received(b"2\r\nok\r\n")
        assert heard.text == b""
        assert len(heard.ends) == 1
        assert isinstance(heard.ends[0], Exception)
        assert isinstance(content.exception(), aiohttp.ClientConnectionError)

    scene(story)


def test_who_paused_a_body_before_its_coding_was_known_finds_it_paused() -> None:
    def story(handler: Handler, line: Line) -> None:
        handler.data_received(CHUNKED)
        content = answer_of(handler)[1]
        heard = Heard()
        content.push_to(Decoding(heard, None, content.hand_to))
        handler.data_received(b"1\r\n(\r\n")  # a frame of zstd's may begin so
        content.pause()
        handler.data_received(b"3\r\na):\r\n")
        assert heard.text == b"(a):"
        assert line.paused
        content.resume()
        assert not line.paused

    scene(story)
