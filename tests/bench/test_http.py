"""The generator's HTTP: what TCP cuts where makes no difference, and only a whole body is whole."""

from __future__ import annotations

import pytest

from relay.bench.http import BadResponse, Response

_BODY = b"data: one\n\ndata: two, longer than the first\n\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def _chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return _HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailer + b"\r\n"


_WHOLE = {
    "one chunk": _chunked(_BODY),
    "chunks that cut events": _chunked(_BODY[:7], _BODY[7:8], _BODY[8:]),
    "chunk extensions and a trailer": _chunked(_BODY, trailer=b"X-Sum: 1\r\n").replace(b"\r\ndata", b";a=b\r\ndata", 1),
    "content-length": _HEAD + b"content-length: %d\r\n\r\n" % len(_BODY) + _BODY,
}


@pytest.mark.parametrize("raw", _WHOLE.values(), ids=_WHOLE)
def test_cut_at_every_byte(raw: bytes) -> None:
    for cut in range(1, len(raw)):
        response = Response()
        assert response.feed(raw[:cut]) + response.feed(raw[cut:]) == _BODY
        assert (response.status, response.whole) == (200, True)


@pytest.mark.parametrize("raw", _WHOLE.values(), ids=_WHOLE)
def test_byte_by_byte(raw: bytes) -> None:
    response = Response()
    seen = [(response.feed(raw[i : i + 1]), response.whole) for i in range(len(raw))]
    assert b"".join(part for part, _ in seen) == _BODY
    assert [whole for _, whole in seen] == [False] * (len(raw) - 1) + [True]


@pytest.mark.parametrize("raw", _WHOLE.values(), ids=_WHOLE)
def test_a_body_cut_short_is_not_whole(raw: bytes) -> None:
    for end in range(len(raw)):
        response = Response()
        response.feed(raw[:end])
        response.eof()
        assert not response.whole


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    response = Response()
    assert response.feed(_HEAD + b"\r\n" + _BODY) == _BODY
    assert not response.whole
    response.eof()
    assert response.whole


def test_no_content_is_whole_at_once() -> None:
    response = Response()
    response.feed(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (response.status, response.whole) == (204, True)


@pytest.mark.parametrize("raw", [b"SSH-2.0-x\r\n\r\n", _chunked(_BODY).replace(b"\r\n\r\n", b"\r\n\r\nzz\r\n", 1)])
def test_what_is_no_http_is_refused(raw: bytes) -> None:
    with pytest.raises(BadResponse):
        Response().feed(raw)
