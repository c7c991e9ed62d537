"""The errors of upstreams in every shape that they come in, and what looks like one and is none."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.protocol.upstream_error import is_keep_alive, read_body, read_object, read_text, read_unframed


@pytest.mark.parametrize(
    ("given_object", "message", "status"),
    [
        ({"error": {"message": "Busy", "type": "overloaded_error"}}, "Busy", 529),
        ({"error": {"message": "Busy", "code": "503"}}, "Busy", 503),
        ({"error": {"message": "Busy", "status": "RESOURCE_EXHAUSTED"}}, "Busy", 429),
        ({"error": "Busy"}, "Busy", None),
        ({"error": ["Busy"]}, "Busy", None),
        ({"error": [{"message": "Busy", "code": 500}]}, "Busy", 500),
        ({"error": True, "message": "Busy"}, "Busy", None),
        ({"error": {"code": 418, "message": {"message": "Tea"}}}, "Tea", 418),
        ({"errors": [{"code": 7003, "message": "Route"}], "success": False}, "Route", None),
        ({"object": "error", "message": "Boom", "code": 500}, "Boom", 500),
        ({"type": "error", "message": "Boom"}, "Boom", None),
        ({"error_type": "rate_limit", "error_message": "Slow"}, "Slow", 429),
        ({"error_code": 336003, "error_msg": "Slow"}, "Slow", None),
        ({"code": 429, "msg": "Quota"}, "Quota", 429),
        ({"detail": "Not Found", "code": 404}, "Not Found", 404),
        ({"detail": [{"msg": "Field required"}]}, "Field required", None),
        ({"base_resp": {"status_code": 1004, "status_msg": "Login"}}, "Login", None),
        ({"fault": {"faultstring": "Spike", "detail": {"errorcode": "x"}}}, "Spike", None),
        ({"__type": "ThrottlingException", "message": "Slow"}, "Slow", 429),
        ([{"error": {"code": 429, "message": "Quota"}}], "Quota", 429),
        ({"Error": {"Message": "Boom", "Code": "500"}}, "Boom", 500),
        ({"err": "Boom"}, "Boom", None),
        ({"errcode": 40001, "errmsg": "Boom"}, "Boom", None),
        ({"message": "Boom", "type": "server_error", "code": None}, "Boom", 500),
        ({"id": "c", "choices": [], "message": "Boom", "code": 500}, "Boom", 500),
        ({"status": "error", "message": "Boom"}, "Boom", None),
        ({"status": "rate_limited", "message": "Boom"}, "Boom", None),
        ({"type": "about:blank", "title": "Busy", "status": 503, "detail": "Boom"}, "Boom", 503),
        ({"type": "https://e.example/quota", "title": "Quota", "detail": "Boom"}, "Boom", None),
        ({"type": "event", "code": "insufficient_quota", "message": "Boom"}, "Boom", 429),
    ],
)
def test_an_error(given_object: object, message: str, status: int | None) -> None:
    found = read_object(given_object)
    assert found is not None
    assert (found.message, found.status) == (message, status)


@pytest.mark.parametrize(
    "nothing",
    [{}, "", [], None, False, 0, "null", "{}", "no error", [None], [{}], [""], {"message": "", "code": 0},
     {"code": None}, {"code": 0, "message": "Success."}, {"code": "0", "message": "ok"},
     {"code": 200, "message": "OK"}],
)  # fmt: skip
def test_a_member_of_that_name_that_says_nothing(nothing: object) -> None:
    assert read_object({"error": nothing, "choices": [{"delta": {}}], "id": "c"}) is None


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "c", "choices": [], "usage": {"prompt_tokens": 1}},
        {"choices": [], "prompt_filter_results": [], "code": 0},
        {"base_resp": {"status_code": 0, "status_msg": "success"}, "choices": None},
        {"type": "an_event_of_its_own", "x": 1},
        {},
        {"status": "processing", "message": "queued"},
        {"type": "status", "status": "in_progress", "message": "Searching"},
        {"event": "progress", "status": "running", "message": "errands"},
        {"status": "loading", "reason": "cold start"},
        {"type": "info", "detail": "Model is warming up"},
        {"type": "note", "code": "x", "message": "y"},
        {"code": 200, "msg": "processing"},
        {"success": True, "code": 1, "message": "hello"},
        {"error_code": 0, "error_msg": "success"},
        {"errors": []},
        {"errors": [None]},
    ],
)
def test_no_error(answer: dict[str, Any]) -> None:
    assert read_object(answer) is None


@pytest.mark.parametrize(
    ("text", "message", "status"),
    [
        (b"error: worker died", "error: worker died", None),
        (b"[ERROR] out of memory", "[ERROR] out of memory", None),
        (b"429 Too Many Requests", "429 Too Many Requests", 429),
        (b"HTTP/1.1 503 Service Unavailable", "HTTP/1.1 503 Service Unavailable", 503),
        (b"Internal Server Error", "Internal Server Error", None),
        (b"CUDA out of memory.", "CUDA out of memory.", None),
        (b'error: {"message":"Boom","code":500}', "Boom", 500),
        (b"<html><title>502 Bad Gateway</title></html>", "502 Bad Gateway", 502),
    ],
)
def test_an_errors_text(text: bytes, message: str, status: int | None) -> None:
    found = read_text(text)
    assert found is not None
    assert (found.message, found.status) == (message, status)


@pytest.mark.parametrize("text", [b'{"id":"c1","choi', b"Hello there", b"connected", b"[DONE", b"1"])
def test_no_errors_text(text: bytes) -> None:
    assert read_text(text) is None


@pytest.mark.parametrize("data", [b"", b" ", b": x", b"ping", b"[PING]", b"keep-alive", b"heartbeat", b": OPENROUTER"])
def test_a_keep_alive(data: bytes) -> None:
    assert is_keep_alive(data)


@pytest.mark.parametrize("data", [b"pinging", b"{}", b"[DONE]", b"hello"])
def test_no_keep_alive(data: bytes) -> None:
    assert not is_keep_alive(data)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({"retry_after": 7}, "7"),
        ({"retry_after": 2.5}, "3"),
        ({"retryAfter": "2.5"}, "3"),
        ({"retry_after": "7s"}, "7"),
        ({"retry_after_ms": 1200}, "2"),
        ({"details": [{"reason": "RATE"}, {"retryDelay": "34s"}]}, "34"),
        ({"metadata": {"retry_after_seconds": 9}}, "9"),
        ({"metadata": {"headers": 1}, "retry_after": True}, ""),
        ({"retry_after": -1}, ""),
        ({"retry_after": float("nan")}, ""),
        ({"retry_after": "Fri, 27 Nov 2026 03:00:00 GMT"}, "Fri, 27 Nov 2026 03:00:00 GMT"),
    ],
)
def test_when_an_error_says_to_come_back(given: dict[str, Any], seconds: str) -> None:
    for told in ({"error": {"message": "Slow", **given}}, {"error": {"message": "Slow"}, **given}):
        found = read_object(told)
        assert found is not None
        assert found.retry_after == seconds


def test_bodies() -> None:
    told = read_body(b'{"error":{"message":"Slow","retry_after":7}}', status=429)
    assert (told.message, told.status, told.retry_after) == ("Slow", 429, "7")
    assert told.describe() == "Slow. Try again in 7 seconds."
    assert read_body(b"", status=500).message == "no message"
    assert read_body(b"<html><title>Sign in</title></html>", status=200).message == "Sign in"
    assert read_body(b'{"object":"chat.completion"}', status=200).status is None


def test_what_was_sent_as_an_event_stream_and_is_none() -> None:
    assert read_unframed(b"data: {") is None
    assert read_unframed(b" ") is None
    compressed = read_unframed(b"\x1f\x8b\x08")
    assert compressed is not None
    assert "gzip" in compressed.message
    words = read_unframed(b"upstream connect error or disconnect/reset before headers")
    assert words is not None
    assert words.message.startswith("upstream connect error")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<html><body><h1>Busy</h1> &amp; <b>late</b></body>", "Busy & late"),
        ("<script>var a = '<b>';</script><p>Busy</p><STYLE>p { x }</style>", "Busy"),
        ("<p>Busy</p><script>var", "Busy var"),
        ("<title>\n</title><p>Busy", "Busy"),
        ("<TITLE lang=en>Busy &lt;1&gt;</TITLE><p>late", "Busy <1>"),
        ("<script></style></script >Busy<style></script>x</style>", "Busy"),
        ("<" * 9 + "p>Busy", "<<<<<<<< Busy"),
    ],
)
def test_the_words_of_a_page(page: str, words: str) -> None:
    assert read_body(page.encode(), status=500).message == words


@pytest.mark.parametrize(
    "part", ["<script ", "<title>", "<style>", "<", "<!--", "!", "error ", "[", "ping!", " ", "a", "4", "&lt"]
)
def test_no_text_takes_long(part: str) -> None:
    """A search that began anew at every `<` took hours for the 8 MiB that an event may have."""
    text = ("<" + part * (4_000_000 // len(part)) + "x").encode()
    began = time.process_time()
    for data in (text, text[1:]):
        is_keep_alive(data)
        read_text(data)
        read_body(data, status=502)
        read_unframed(data)
        read_object({"error": {"message": "x", "code": data.decode()}})
    assert time.process_time() - began < 5


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "message", "detail", "type", "errors"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(_JSON, st.booleans())
def test_never_a_fault_of_its_own(value: object, named: bool) -> None:
    found = read_object(value, named=named)
    assert found is None or found.message
    assert read_body(json.dumps(value).encode(), status=200).message
    read_text(json.dumps(value).encode())
