"""The parts of `relay demo` that need no model: whose a taken port is, and what may be asked of it."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from relay.demo.control import Control
from relay.demo.ports import PortTaken, holder, require_free
from tests.support.processes import free_port

ONE, TWO = "http://127.0.0.1:18080", "http://127.0.0.1:18081"


@pytest.fixture
def taken() -> Iterator[int]:
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield port


def demo(port: int) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "relay", "demo", "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("before", [0, 1], ids=["first", "second"])
def test_a_taken_port_is_told_before_anything_starts(taken: int, before: int) -> None:
    status, out, error = demo(taken - before)
    assert (status, out) == (1, "")
    assert error.startswith(f"relay demo: port {taken} is taken by ")
    assert "relay demo --port 1" in error


def test_it_says_whose_a_port_is(taken: int) -> None:
    assert holder(taken).startswith(f"process {os.getpid()} (")


@pytest.mark.parametrize("port", [65_535, 70_000, -1])
def test_a_port_that_there_is_not_is_told(port: int) -> None:
    with pytest.raises(PortTaken, match=r"there is no port .*use others: relay demo --port"):
        require_free(port, 2)


def test_free_ports_are_left_as_they_are() -> None:
    port = next(port for port in iter(free_port, 0) if holder(port + 1) == holder(1))
    require_free(port, 2)
    require_free(port, 2)


@pytest.fixture
def control() -> Iterator[tuple[Control, list[str]]]:
    killed: list[str] = []
    with Control("a-model", [ONE, TWO], killed.append) as found:
        yield found, killed


def ask(url: str, method: str, body: str | None = None, **headers: str) -> tuple[int, str | None, bytes]:
    at = urlsplit(url)
    connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=10)
    try:
        connection.request(method, at.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("access-control-allow-origin"), answer.read()
    finally:
        connection.close()


def test_a_page_of_a_replica_learns_the_model_and_kills_a_replica(control: tuple[Control, list[str]]) -> None:
    found, killed = control
    assert ask(found.url, "GET", origin=ONE) == (200, ONE, b'{"model": "a-model"}')
    assert ask(found.url, "POST", TWO, origin=ONE) == (204, ONE, b"")
    assert killed == [TWO]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("headers", [{}, {"origin": "http://evil.example"}, {"origin": "null"}], ids=str)
def test_no_other_page_is_answered(control: tuple[Control, list[str]], method: str, headers: dict[str, str]) -> None:
    found, killed = control
    status, allowed, body = ask(found.url, method, ONE if method == "POST" else None, **headers)
    assert (status, allowed) == (403, None)
    assert b"a-model" not in body
    assert killed == []


def test_who_does_not_know_the_word_is_not_answered(control: tuple[Control, list[str]]) -> None:
    found, killed = control
    for path in ("/", "/word", urlsplit(found.url).path[:-1], urlsplit(found.url).path + "/x"):
        base = found.url.removesuffix(urlsplit(found.url).path)
        assert ask(base + path, "POST", ONE, origin=ONE)[0] == 404
    assert killed == []


@pytest.mark.parametrize(
    "body", ["", "http://127.0.0.1:1", ONE + "/", "x" * 5000], ids=["empty", "other", "near", "long"]
)
def test_only_a_replica_of_the_demo_is_killed(control: tuple[Control, list[str]], body: str) -> None:
    found, killed = control
    assert ask(found.url, "POST", body, origin=ONE)[0] == 400
    assert killed == []
