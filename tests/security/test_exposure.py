"""Exposure: which ports are open, what is on the public one, and what an error tells."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay import processes
from tests.conftest import Relays
from tests.security.wire import AUTH, say
from tests.support.processes import RelayProcess, free_port, needs
from tests.support.scripted import End, Head, ScriptedUpstream, Send
from tests.support.sseclient import open_stream

ROOT = Path(__file__).parents[2]

SETTINGS = (Path(__file__).parents[2] / "deploy/SETTINGS.md").read_text(encoding="utf-8")
_LISTEN = "0A"


def family_of(pid: int) -> set[int]:
    """A process and all that it has started."""
    found = {pid}
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for number in child.read_text().split():
            found |= family_of(int(number))
    return found


def listening(pids: set[int]) -> set[str]:
    """`address:port` of every TCP socket on which one of them accepts connections, and `udp` for one of UDP."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(descriptor))
            except FileNotFoundError:
                continue
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" not in inodes:
                continue
            if name.startswith("udp"):
                found.add("udp")
            elif fields[3] == _LISTEN:
                address, port = fields[1].split(":")
                host = socket.inet_ntop(socket.AF_INET, bytes.fromhex(address)[::-1]) if name == "tcp" else address
                found.add(f"{host}:{int(port, 16)}")
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_no_port_is_open_but_those_of_the_settings(upstream: ScriptedUpstream, relays: Relays, workers: int) -> None:
    """With the store that the relay starts itself, which listens on a unix socket."""
    needs(Path("/proc/net/tcp").exists(), "/proc, to see which ports are open")
    relay = relays.start({"upstreams": [{"name": "u", "base_url": upstream.url}], "workers": workers})
    assert listening(family_of(relay.pid)) == {relay.config["bind"], relay.config["metrics_bind"]}


def test_every_port_is_documented() -> None:
    """A port is opened by a setting that ends in `bind`; each is in the settings reference, with where it listens."""
    rows = re.findall(r"^\| `(\w*bind)` \| `([\d.]+):\d+` \| (.+) \|$", SETTINGS, re.MULTILINE)
    assert {name for name, _, _ in rows} == {"bind", "metrics_bind"}
    assert {host for _, host, _ in rows} == {"127.0.0.1"}, "by default nobody else's machine reaches the relay"


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/metrics/", "/v1/../metrics", "/playground", "/playground/", "/playground/replicas.json"),
        *("/health", "/healthz", "/status", "/debug", "/debug/vars", "/stats", "/admin", "/config", "/docs"),
        *("/.env", "/.git/config", "/favicon.ico", "/streams", "/streams/", "/"),
    ],
)
def test_the_public_address_serves_nothing_else(shown: RelayProcess, path: str) -> None:
    with open_stream(shown.url + path, "GET", AUTH) as answer:
        assert answer.status in (400, 404)
        assert "relay_" not in answer.read().decode()


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_tells_no_detail(shown: RelayProcess, path: str) -> None:
    with open_stream(shown.url + path, "GET") as answer:
        assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')


def test_no_answer_names_what_runs_here(shown: RelayProcess) -> None:
    for path in ("/livez", "/nowhere", "/v1/models"):
        with open_stream(shown.url + path, "GET") as answer:
            assert not {"server", "x-powered-by"} & set(answer.headers)
            assert not re.search(r"(?i)python|hypercorn|starlette|aiohttp|h11", answer.read().decode())


@pytest.fixture(scope="module")
def shown() -> Iterator[RelayProcess]:
    with RelayProcess({"upstreams": [{"name": "gone", "base_url": f"http://127.0.0.1:{free_port()}"}]}) as relay:
        yield relay


# -- errors -----------------------------------------------------------------------------------------------------------


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """The port of an upstream that says these bytes to everyone and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    try:
                        connection.recv(1 << 16)
                        connection.sendall(reply)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join(10)


FAULTS: dict[str, tuple[str, bytes]] = {
    # name: scheme and host, what the upstream says
    "hangs up": ("http://127.0.0.1", b""),
    "no HTTP": ("http://127.0.0.1", b"SSH-2.0-OpenSSH_9.6\r\n"),
    "half a head": ("http://127.0.0.1", b"HTTP/1.1 200 OK\r\ncontent-ty"),
    "bad status": ("http://127.0.0.1", b"HTTP/1.1 999999 What\r\n\r\n"),
    "bad length": ("http://127.0.0.1", b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"),
    "no TLS": ("https://127.0.0.1", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "no such host": ("http://internal-llm.invalid", b""),
    "not there": ("http://127.0.0.1", b""),
}
TELLTALE = re.compile(
    r"127\.0\.0\.1|localhost|invalid\b(?!_)|Traceback|\.py\b|line \d+|aiohttp|httpx|Errno|/v1/|ssl:|0x[0-9a-f]{6}"
)


def test_a_child_is_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo and the benchmark start: /proc shows another process's environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "canary-4d1c")
    monkeypatch.setenv("RELAY_STORE__URL", "redis://:canary-4d1c@store")
    said = "import os; print(sorted(os.environ)); print([v for v in os.environ.values() if 'canary' in v])"
    process = processes.start([sys.executable, "-c", said], stdout=subprocess.PIPE, text=True)
    names, secrets = process.communicate(timeout=30)[0].splitlines()
    assert secrets == "[]"
    assert "PATH" in names


def test_nothing_in_the_relay_hands_its_environment_on() -> None:
    """Every process is started with an environment of its own, by the two modules that start any."""
    starting = re.compile(
        r"subprocess\.(?:Popen|run|call|check_\w+)\(|create_subprocess|os\.(?:spawn|posix_spawn|system)"
    )
    found = set()
    for path in (ROOT / "relay").rglob("*.py"):
        text = path.read_text()
        assert "**os.environ" not in text, path
        found |= {path.name} if starting.search(text) else set()
    assert found == {"processes.py", "embedded.py"}
    for name in ("processes.py", "store/embedded.py"):
        text = (ROOT / "relay" / name).read_text()
        assert len(starting.findall(text)) == text.count("env="), name


@dataclass(frozen=True)
class Faulty:
    """One relay in front of all of them, and the ports at which they are."""

    relay: RelayProcess
    ports: list[int]


@pytest.fixture(scope="module")
def faulty() -> Iterator[Faulty]:
    with ExitStack() as stack:
        upstreams, ports = [], []
        for number, fault in enumerate(FAULTS):
            scheme_and_host, reply = FAULTS[fault]
            port = free_port() if fault == "not there" else stack.enter_context(answering(reply))
            ports.append(port)
            base = f"{scheme_and_host}:{port}"
            upstreams.append({"name": f"up-{number}", "base_url": base, "models": [f"fault-{number}"]})
        config = {"upstreams": upstreams, "streams": {"patience": "10s"}}
        yield Faulty(stack.enter_context(RelayProcess(config)), ports)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_tells_neither_stack_nor_the_upstreams_address(faulty: Faulty, fault: str, streamed: bool) -> None:
    number = list(FAULTS).index(fault)
    body = {"model": f"fault-{number}", "messages": [], "stream": streamed}
    with open_stream(faulty.relay.url + "/v1/chat/completions", headers=AUTH, body=body) as answer:
        text = answer.read().decode()
        assert answer.status == 502, text
        assert json.loads(text)["error"]["code"] in (
            "upstream_unreachable",
            "upstream_disconnected",
            "upstream_malformed",
        )
        assert not TELLTALE.search(text)
        assert not TELLTALE.search(repr(answer.header_list))
        assert not [port for port in faulty.ports if str(port) in text]
        assert answer.headers["x-request-id"].startswith("req_")


def test_a_broken_stream_tells_neither_stack_nor_address(relays: Relays) -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999\r\n\r\ndata: {}\n\ndata: {"
    with answering(reply) as port:
        relay = relays.start({"upstreams": [{"name": "up", "base_url": f"http://127.0.0.1:{port}"}]})
        body = {"model": "m", "stream": True, "messages": []}
        with open_stream(relay.url + "/v1/chat/completions", headers=AUTH, body=body) as answer:
            text = answer.read().decode()
    assert "upstream_disconnected" in text
    assert not TELLTALE.search(text), text
    assert str(port) not in text.replace("retry: ", "")


def test_a_page_that_an_upstream_sends_is_none_of_this_origins(relays: Relays, upstream: ScriptedUpstream) -> None:
    """A file's content, say, opened in a browser: its scripts must not read what the playground keeps there."""
    upstream.on_path(
        "GET /v1/files/f/content", Head(200, {"content-type": "text/html"}), Send(b"<script>1</script>"), End()
    )
    relay = relays.start({"upstreams": [{"name": "scripted", "base_url": upstream.url}], "playground": True})
    answer = open_stream(relay.url + "/v1/files/f/content", "GET", AUTH)
    assert answer.read() == b"<script>1</script>"
    assert answer.headers["content-security-policy"] == "sandbox"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /%ff%fe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /streams/%00 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-a: \xff\xfe\r\nconnection: close\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nconnection: close\r\n\r\n\xff",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n",
        b"GARBAGE\r\n\r\n",
    ],
)
def test_odd_requests_are_no_faults_of_the_relays(shown: RelayProcess, data: bytes) -> None:
    heard = say(shown.url, data)
    assert len(heard.statuses) == 1
    assert heard.statuses[0] in (400, 404, 426, 502)
    assert not re.search(rb"Traceback|\.py\b|127\.0\.0\.1", heard.data)
    assert "Traceback" not in shown.log()
