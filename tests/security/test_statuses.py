"""What an upstream says in the place of a status: an answer has one from 200 to 599, and all else is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import create_server, socket

import pytest

from tests.security.undefended_relay import without
from tests.security.wire import AUTH
from tests.support.processes import RelayProcess
from tests.support.sseclient import open_stream

pytestmark = pytest.mark.slow

NONE = [
    b"000",
    b"001",
    b"099",
    b"101",
    b"600",
    b"700",
    b"999",
    b"0",
    b"20",
    b"2000",
    b"-20",
    b"+20",
    b"abc",
    b"",
    b"2 0",
]


@contextmanager
def answering(status: bytes, *lacking: str, before: bytes = b"") -> Iterator[RelayProcess]:
    """A relay whose upstream answers everything so."""
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection: socket = listener.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.settimeout(10)
                    heard = b""
                    while b"\r\n\r\n" not in heard:
                        heard += connection.recv(1 << 16)
                    with suppress(OSError):
                        connection.sendall(before)
                        connection.sendall(b"HTTP/1.1 " + status + b" Said\r\ncontent-length: 2\r\n\r\n{}")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            port = listener.getsockname()[1]
            upstreams = [{"name": "odd", "base_url": f"http://127.0.0.1:{port}"}]
            with RelayProcess({"upstreams": upstreams}, without(*lacking)) as relay:
                yield relay
        finally:
            listener.shutdown(2)
            thread.join(10)


@pytest.mark.parametrize("status", NONE)
def test_a_status_that_is_none_is_the_upstream_s_fault(status: bytes) -> None:
    body = {"model": "m", "stream": True, "messages": []}
    with answering(status) as relay:
        for path, asked in (("/v1/files/f", None), ("/v1/chat/completions", body), ("/v1/embeddings", {"model": "m"})):
            method = "GET" if asked is None else "POST"
            with open_stream(relay.url + path, method, headers=AUTH, body=asked) as answer:
                told = json.loads(answer.read())
                assert (answer.status, told["error"]["code"]) == (502, "upstream_malformed"), path
                assert answer.headers["x-should-retry"] == "false"


EARLY = b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"


@pytest.mark.parametrize("count", [65, 500_000])
def test_an_answer_that_only_ever_announces_itself_is_none(count: int) -> None:
    """Each such head put off the end of the wait for an answer, and they were kept as they came."""
    body = {"model": "m", "stream": True, "messages": []}
    with (
        answering(b"200", before=EARLY * count) as relay,
        open_stream(relay.url + "/v1/chat/completions", headers=AUTH, body=body) as answer,
    ):
        told = json.loads(answer.read())
        assert (answer.status, told["error"]["code"]) == (502, "upstream_malformed")


def test_some_heads_before_an_answer_are_read_over() -> None:
    with answering(b"200", before=EARLY * 10) as relay:
        for _ in range(8):
            with open_stream(relay.url + "/v1/files/f", "GET", headers=AUTH) as answer:
                assert answer.status == 200


@pytest.mark.parametrize("status", [b"600", b"999"])
def test_without_the_check_it_crosses(status: bytes) -> None:
    with answering(status, "statuses") as relay, open_stream(relay.url + "/v1/files/f", "GET", headers=AUTH) as answer:
        assert answer.status == int(status)


@pytest.mark.parametrize("status", [b"200", b"404", b"529", b"599"])
def test_a_status_crosses(status: bytes) -> None:
    with answering(status) as relay, open_stream(relay.url + "/v1/files/f", "GET", headers=AUTH) as answer:
        assert answer.status == int(status)
