"""Heads and bodies of HTTP/1.1 as bytes; what they do to a relay is in `tests/security/test_smuggling.py`."""

from __future__ import annotations

import pytest

from relay.http.heads import Body, Malformed, Received, answer_head, parse

LINES = (b"host: x", b"X-A:\tb \t", b"x-empty:", b"x-obs: \xff")


def head(*lines: bytes, start: bytes = b"POST /v1/x?a=%20b HTTP/1.1") -> bytes:
    return b"\r\n".join((start, *lines, b"", b""))


def test_a_head_is_what_it_says() -> None:
    found = parse(head(*LINES, b"Content-Length: 012"))
    assert (found.method, found.target, found.version) == ("POST", b"/v1/x?a=%20b", "1.1")
    assert found.headers == [
        (b"host", b"x"),
        (b"x-a", b"b"),
        (b"x-empty", b""),
        (b"x-obs", b"\xff"),
        (b"content-length", b"012"),
    ]
    assert (found.length, found.keep_alive, found.continues) == (12, True, False)


@pytest.mark.parametrize(
    ("lines", "start", "expected"),
    [
        ((), b"GET / HTTP/1.1", (0, True, False)),
        ((b"transfer-encoding: Chunked",), b"POST / HTTP/1.1", (None, True, False)),
        ((b"connection: x, Close",), b"GET / HTTP/1.1", (0, False, False)),
        ((b"connection: keep-alive",), b"GET / HTTP/1.0", (0, False, False)),
        ((b"expect: 100-Continue", b"content-length: 1"), b"POST / HTTP/1.1", (1, True, True)),
        ((b"expect: 100-continue", b"content-length: 1"), b"POST / HTTP/1.0", (1, False, False)),
        ((b"connection: upgrade", b"upgrade: h2c"), b"GET / HTTP/1.1", (0, True, False)),
        ((b"connection: upgrade", b"upgrade: h2c", b"content-length: 3"), b"BREW / HTTP/1.1", (3, True, False)),
        ((), b"CONNECT x:1 HTTP/1.1", (0, False, False)),
        ((b"content-length: 2",), b"CONNECT /v1/x HTTP/1.1", (2, False, False)),
    ],
)
def test_what_follows_a_head(lines: tuple[bytes, ...], start: bytes, expected: tuple[int | None, bool, bool]) -> None:
    found = parse(head(b"host: x", *lines, start=start))
    assert (found.length, found.keep_alive, found.continues) == expected


@pytest.mark.parametrize(
    "method", [b"BREW", b"post", b"X-Y.Z", b"SEARCH", b"TRACE", b"SOURCE", b"PRI", b"PLAY", b"M-SEARCH"]
)
def test_which_methods_there_are_is_the_application_s_to_say(method: bytes) -> None:
    found = parse(head(*LINES, start=method + b" / HTTP/1.1"))
    assert (found.method, len(found.headers)) == (method.decode(), len(LINES))


@pytest.mark.parametrize(
    "target", [b"*", b"http://h:80/x?y", b"h:80", b"?a", b"x", b'/"<>\\^`{|}', b"/%zz", b"/a#b#c", b"a:b@c"]
)
@pytest.mark.parametrize("method", [b"GET", b"CONNECT", b"BREW"])
def test_which_targets_there_are_is_the_application_s_to_say(method: bytes, target: bytes) -> None:
    assert parse(head(*LINES, start=b"%b %b HTTP/1.1" % (method, target))).target == target


@pytest.mark.parametrize("character", [*range(0x09), *range(0x0A, 0x20), 0x7F])
@pytest.mark.parametrize("where", [b"x-a: b%bc", b"x-a: %b", b"x-a%b: b", b"x-%ba: b"])
def test_no_control_character_is_in_a_head(character: int, where: bytes) -> None:
    for method in (b"GET", b"BREW"):
        with pytest.raises(Malformed):
            parse(head(b"host: x", where % bytes((character,)), start=method + b" / HTTP/1.1"))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(start=b"GET / HTTP/1.1"), 400),
        (head(b"host: x", b"host: x"), 400),
        (head(b"host: x", start=b"GET / HTTP/0.9"), 505),
        (head(b"host: x", start=b"GET / HTTP/2.0"), 505),
        (head(b"host: x", start=b"GET /"), 400),
        (head(b"host: x", start=b"G(T / HTTP/1.1"), 400),
        (head(b"host: x", start=b"GET /\xe9 HTTP/1.1"), 400),
        (head(b"host: x", b"transfer-encoding: gzip"), 501),
        (head(b"host: x", b"transfer-encoding: chunked", b"content-length: 1"), 400),
        (head(b"host: x", b"content-length: 1", b"content-length: 1"), 400),
        (head(b"host: x", b"content-length: +1"), 400),
        (head(b"host: x", b"content-length: 12345678901234567890"), 400),
        (head(b"host: x", b" x-folded: a"), 400),
        (head(b"host: x", b"x-a : b"), 400),
    ],
)
def test_what_is_malformed_says_what_is_answered(data: bytes, status: int) -> None:
    with pytest.raises(Malformed) as told:
        parse(data)
    assert told.value.status == status


def test_a_head_without_end_is_none() -> None:
    received = Received(100)
    received.data += b"GET / HTTP/1.1\r\nx: " + b"a" * 100
    with pytest.raises(Malformed) as told:
        received.take_head()
    assert told.value.status == 431


def test_what_cannot_begin_a_head_is_refused_at_once() -> None:
    received = Received(100)
    received.data += b"\x16\x03\x01"
    with pytest.raises(Malformed):
        received.take_head()


CHUNKS = b'5\r\nhello\r\n0005;a="b"\r\nworld\r\n0\r\nx-a: b\r\n\r\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(CHUNKS), len(CHUNKS) + 4])
def test_a_body_in_chunks_is_the_same_however_tcp_cuts_it(size: int) -> None:
    received, body, found = Received(100), Body(None), b""
    data = CHUNKS + b"NEXT"
    for at in range(0, len(data), size):
        received.data += data[at : at + size]
        if not body.whole:
            found += body.take(received)
    assert (found, body.whole, bytes(received.data)) == (b"helloworld", True, b"NEXT")


@pytest.mark.parametrize(
    "data",
    [
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"\r\n\r\n",
        b"0\r\ncontent-length: 5\r\n\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0\r\nx: \x01\r\n\r\n",
        b"0\r\nx y: z\r\n\r\n",
        b"0\n\n",
        b"5;" + b"a" * 5000,
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_a_body_that_two_servers_may_read_in_two_ways_is_malformed(data: bytes, size: int) -> None:
    received, body = Received(10_000), Body(None)
    with pytest.raises(Malformed):  # noqa: PT012
        for at in range(0, len(data), size):
            received.data += data[at : at + size]
            body.take(received)


def test_many_small_chunks_are_taken_in_turns() -> None:
    received, body = Received(100), Body(None)
    received.data += b"1\r\nx\r\n" * 10_000
    taken = []
    while received.data:
        taken.append(body.take(received))
    assert b"".join(taken) == b"x" * 10_000
    assert max(map(len, taken)) <= 200


def test_a_body_of_a_length_ends_there() -> None:
    received, body = Received(100), Body(5)
    received.data += b"he"
    assert (body.take(received), body.whole) == (b"he", False)
    received.data += b"lloNEXT"
    assert (body.take(received), body.whole, bytes(received.data)) == (b"llo", True, b"NEXT")


def test_an_answer_s_head() -> None:
    assert answer_head(200, [(b"a", b"b"), (b"c", b"")]) == b"HTTP/1.1 200 \r\na: b\r\nc: \r\n\r\n"
    assert answer_head(599, []) == b"HTTP/1.1 599 \r\n\r\n"


@pytest.mark.parametrize("header", [(b"a", b"b\r\nc: d"), (b"a", b"b\n"), (b"a b", b""), (b"", b""), (b"a", b"\0")])
def test_nothing_in_an_answer_s_head_ends_its_line(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="malformed"):
        answer_head(200, [header])
