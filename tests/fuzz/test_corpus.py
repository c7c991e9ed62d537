"""Every input that the fuzzers keep, and thousands that Hypothesis makes up, in each target. Needs no fuzzer."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import fuzz_compact, fuzz_event_id, fuzz_headers, fuzz_heads, fuzz_json, fuzz_sse
from tests.fuzz.run import CORPUS, TARGETS
from tests.protocol.test_sse import bodies

KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file())

NAMES = [
    *(b"connection", b"Keep-Alive", b"te", b"Transfer-Encoding", b"host", b"cookie", b"set-cookie", b"alt-svc"),
    *(b"authorization", b"X-Api-Key", b"api-key", b"anthropic-version", b"x-request-id", b"traceparent", b"x_kept"),
    *(b"content-length", b"content-type", b"accept-encoding", b"last-event-id", b"relay-ticket", b"relay-stream-id"),
    *(b"forwarded", b"X-Forwarded-For", b"x-http-method-override", b"x-kept", b"retry-after", b"x-ratelimit-limit"),
]
VALUES = [
    b"",
    b"x-kept",
    b"X-Request-Id, te",
    b",authorization,",
    b"Bearer",
    b"Bearer a",
    b"a",
    b" a ",
    b"b\rset-cookie: c",
]
STREAMS = [
    "st_" + "Aa0_-" * 4 + "Zz",
    "st_" + "Aa0_-" * 4 + "_u",
    "st_" + "Aa0_-" * 4 + "Zz_u",
    "st_",
    "St_" + "A" * 22,
]


def test_each_target_has_a_small_corpus() -> None:
    assert {path.parent.name for path in KEPT} == set(TARGETS)
    assert all(path.stat().st_size <= 512 for path in KEPT)
    assert len(KEPT) <= 40 * len(TARGETS), "keep what tells something"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_is_kept_breaks_nothing(path: Path) -> None:
    importlib.import_module(f"tests.fuzz.fuzz_{path.parent.name}").one(path.read_bytes())


@given(st.binary(max_size=3), st.integers(0, 255), bodies)
def test_any_body(steps: bytes, bound: int, body: bytes) -> None:
    fuzz_sse.one(steps.ljust(3, b"\0") + bytes([bound]) + body)


@given(st.sampled_from(STREAMS), st.sampled_from([".", "", "..", "\n."]), st.text("0123456789٣-+ \n", max_size=17))
def test_any_event_id(stream: str, dot: str, n: str) -> None:
    fuzz_event_id.one(f"{stream}{dot}{n}".encode())


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | st.binary(max_size=8)), max_size=8))
def test_any_head(headers: list[tuple[bytes, bytes]]) -> None:
    fuzz_headers.one(b"\n".join(b"%b: %b" % item for item in headers))


@given(
    st.binary(max_size=3),
    st.lists(st.sampled_from([*'{}[]:,"\\ 1n', '"model"', '"n"', "\\u006e", "null", '{"n":', '"a":']), max_size=30).map(
        "".join
    ),
)
def test_any_json(steps: bytes, text: str) -> None:
    fuzz_json.one(steps.ljust(3, b"\0") + text.encode())


@given(
    st.integers(0, 255),
    st.lists(
        st.sampled_from([*'{}":,\\ 1n', '","', '"text":"', "data: ", "\n\n", "\0", "the same for each", "12345"]),
        max_size=60,
    ).map("".join),
)
def test_any_events(first: int, text: str) -> None:
    fuzz_compact.one(bytes([first]) + text.encode())


STARTS = [
    *(b"GET / HTTP/1.1", b"POST /v1/x?a HTTP/1.1", b"SOURCE * HTTP/1.1", b"CONNECT h:80 HTTP/1.1", b"GET / HTTP/1.0"),
    *(b"get x HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/1.2", b"PRI * HTTP/2.0", b"GET /"),
]
LINES = [
    *(
        b"host: x",
        b"Host:y",
        b"content-length: 5",
        b"Content-Length:05 ",
        b"content-length: +5",
        b"content-length: 5,5",
    ),
    *(b"transfer-encoding: chunked", b"Transfer-Encoding:\tCHUNKED", b"transfer-encoding: gzip, chunked", b"x-a:"),
    *(
        b"transfer-encoding : chunked",
        b" x: y",
        b"x\ny: z",
        b"x: \0",
        b"x: y\r",
        b"x-a:\t \xff \t",
        b"connection: close",
    ),
    *(b"upgrade: h2c", b"connection: upgrade", b"expect: 100-continue", b"x-a: b: c", b": x", b"x"),
]
AFTER = [
    *(
        b"",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"5;a\r\nhello\r\n00\r\nx: y\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
    ),
    *(b"5\r\nhelloX\r\n0\r\n\r\n", b"0\r\n x: y\r\n\r\n", b"5\nhello\n0\n\n", b"\r\n", b"-5\r\nhello\r\n0\r\n\r\n"),
]


@given(
    st.integers(0, 255),
    st.lists(
        st.tuples(st.sampled_from(STARTS), st.lists(st.sampled_from(LINES), max_size=4), st.sampled_from(AFTER)),
        min_size=1,
        max_size=3,
    ),
    st.tuples(st.integers(0, 300), st.binary(max_size=2)),
)
def test_any_requests(cut: int, requests: list[tuple[bytes, list[bytes], bytes]], broken: tuple[int, bytes]) -> None:
    data = b"".join(b"\r\n".join((start, *lines, b"", after)) for start, lines, after in requests)
    at, more = broken
    fuzz_heads.one(bytes([cut]) + data[:at] + more + data[at:])


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for target in (fuzz_sse, fuzz_event_id, fuzz_headers, fuzz_heads, fuzz_json, fuzz_compact):
        target.one(data)
