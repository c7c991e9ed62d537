"""The script of `helm test`, as the chart ships it, and the curl lines of the notes, against real servers.

The script has to pass against a relay and fail against everything that a client could not resume on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Relays
from tests.helm import chart
from tests.support.processes import RelayProcess, free_port, needs
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.streams import APIS, Api, answer

WORDS = ("one", "two", "three", "four", "five", "six")
KEY = "a-key-of-the-test-s"


def chat() -> list[str]:
    frames: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in WORDS
    ]
    frames.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [*(f"data: {json.dumps(frame)}\n\n" for frame in frames), "data: [DONE]\n\n"]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """As it stands in the ConfigMap."""
    path = tmp_path / "resume_check.py"
    path.write_text(chart.of(chart.case("minimal"), "ConfigMap", "-test")["data"]["resume_check.py"])
    return path


def check(
    script: Path, url: str, api: str = "chat", model: str = "m", ready: float = 2
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "CHECK_URL": url, "CHECK_API": api, "CHECK_MODEL": model}
    environment |= {"CHECK_KEY": KEY, "CHECK_TIMEOUT": "20", "CHECK_READY": str(ready)}
    command = [sys.executable, "-I", str(script)]  # isolated: with no package but the standard library's
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def relay_for(relays: Relays, upstream: ScriptedUpstream, **settings: object) -> RelayProcess:
    return relays.start({"upstreams": [{"name": "up", "base_url": upstream.url, **settings}]})


@pytest.mark.parametrize("api", APIS)
def test_it_passes_against_a_relay(api: Api, script: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
    frames = answer(api, WORDS).events
    # The rest of the answer comes after the cut: the script must have hung up before it exists.
    upstream.on("m", *stream(*frames[:3], Gate("cut"), *frames[3:]))
    relay = relay_for(relays, upstream)
    with _OpenedWhen(upstream, "cut"):
        shown = check(script, relay.url, api)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "PASSED" in shown.stdout
    assert len(upstream.calls) == 1, "a resume went upstream"


class _OpenedWhen:
    """Opens a gate as soon as a connection stands at it."""

    def __init__(self, upstream: ScriptedUpstream, name: str) -> None:
        def open_it() -> None:
            upstream.wait_reached(name, 20)
            upstream.open(name)

        self._thread = threading.Thread(target=open_it)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()


def test_it_asks_as_the_chart_has_set_it_up(script: Path) -> None:
    found = chart.case("everything")
    (pod,) = chart.kinds(found, "Pod")
    (item,) = pod["spec"]["containers"]
    given = {variable["name"]: variable.get("value", "") for variable in item["env"]}
    read = set(re.findall(r'environ\.get\("(CHECK_\w+)"', script.read_text()))
    assert given.keys() == read
    service = chart.of(found, "Service")
    assert given["CHECK_URL"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert (given["CHECK_API"], given["CHECK_MODEL"]) == ("chat", "gpt-mini")
    assert item["command"][1].rpartition("/")[2] in chart.of(found, "ConfigMap", "-test")["data"]
    apis = {name: _api_of(name) for name in ("minimal", "valkey", "edge")}
    assert apis == {"minimal": "chat", "valkey": "messages", "edge": "responses"}


def _api_of(name: str) -> str:
    (item,) = chart.kinds(chart.case(name), "Pod")[0]["spec"]["containers"]
    return next(str(variable["value"]) for variable in item["env"] if variable["name"] == "CHECK_API")


def test_it_fails_without_a_model(script: Path) -> None:
    shown = check(script, "http://127.0.0.1:9", model="")
    assert shown.returncode == 2
    assert "set test.model" in shown.stdout


def test_it_fails_where_nothing_answers(script: Path) -> None:
    assert check(script, "http://127.0.0.1:9").returncode == 1


def test_it_fails_against_an_upstream_without_a_relay(script: Path, upstream: ScriptedUpstream) -> None:
    """Nor a server that is not ready, which has time to become so."""
    upstream.on("m", *stream(*chat()))
    refused(check(script, upstream.url), "was not ready within 2 s; /readyz answers 4")


def test_it_waits_for_a_relay_that_starts(script: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
    """As right after an install: nobody there at first, then a relay that serves."""
    upstream.on("m", *stream(*chat()))
    address = f"127.0.0.1:{free_port()}"
    shown: list[subprocess.CompletedProcess[str]] = []
    checking = threading.Thread(target=lambda: shown.append(check(script, f"http://{address}", ready=30)))
    checking.start()
    checking.join(1.5)
    assert checking.is_alive(), shown
    relays.start({"bind": address, "upstreams": [{"name": "up", "base_url": upstream.url}]})
    checking.join(60)
    assert shown[0].returncode == 0, shown[0].stdout


def test_it_fails_where_the_relay_keeps_no_log(script: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("m", *stream(*chat()))
    relay = relay_for(relays, upstream, buffer=False)
    refused(check(script, relay.url), "has no log|not a stream of the relay's")


def test_it_fails_where_the_generation_broke(script: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
    upstream.on("m", *stream(*chat()[:-2]))
    relay = relay_for(relays, upstream)
    refused(check(script, relay.url), "its outcome is upstream_disconnected")


NUMBERED = [f"id: st_x.{n}\n{frame}" for n, frame in enumerate(chat(), 1)]
LIES: dict[str, tuple[Callable[[int], list[str]], str]] = {
    "from the start again": (lambda after: NUMBERED, "is called"),
    "one too many": (lambda after: NUMBERED[max(0, after - 1) :], "is called"),
    "a hole": (lambda after: NUMBERED[after:][:1] + NUMBERED[after:][2:], "is called"),
    "without ids": (lambda after: chat()[after:], "has no id"),
    "another generation": (
        lambda after: [frame.replace("three", f"{after}") for frame in NUMBERED[after:]],
        "other events",
    ),
    "without an end": (lambda after: NUMBERED[after:-1], "terminal event"),
    "an event without an id": (lambda after: [*NUMBERED[after:5], chat()[5], *NUMBERED[5:]][: 9 - after], "has no id"),
    "an end of its own": (
        lambda after: [*NUMBERED[after:4], chat()[4], "id: st_x.4e\ndata: [DONE]\n\n"],
        "after event 4",
    ),
    "an end that does not say so": (lambda after: NUMBERED[after:], "at the end answers 200"),
}


@pytest.mark.parametrize("lie", LIES)
def test_it_fails_against_a_server_that_only_looks_resumable(lie: str, script: Path) -> None:
    answer, words = LIES[lie]
    with _Liar(answer) as url:
        refused(check(script, url), words)


def refused(shown: subprocess.CompletedProcess[str], words: str) -> None:
    assert shown.returncode == 1, shown.stdout + shown.stderr
    assert shown.stdout.splitlines()[-1].startswith("FAILED: "), shown.stdout + shown.stderr
    assert re.search(words, shown.stdout), shown.stdout


class _Liar:
    """Answers a POST with what `answer` makes of the number in its Last-Event-ID, under the relay's own headers."""

    def __init__(self, answer: Callable[[int], list[str]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                given = self.headers.get("Last-Event-ID")
                frames = NUMBERED if given is None else answer(int(given.rpartition(".")[2]))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Relay-Stream-Id", "st_x")
                self.send_header("Relay-Resumable", "true")
                self.end_headers()
                self.wfile.write("".join(frames).encode())

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"outcome": "completed"}')

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize(("name", "api"), [("minimal", "chat"), ("valkey", "messages"), ("edge", "responses")])
def test_the_notes_lines_cut_a_stream_and_go_on(
    name: str, api: Api, relays: Relays, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    needs(shutil.which("curl") and shutil.which("bash"), "curl and bash are not installed")
    upstream.on("a-model", *stream(*answer(api, WORDS).events))
    relay = relay_for(relays, upstream)
    command = ("install", "try", str(chart.CHART), "--dry-run=client", "--values", str(chart.CASES[name]))
    shown = chart.run("helm4", *command)
    assert shown.returncode == 0, shown.stderr
    lines = [line.strip() for line in shown.stdout.partition("NOTES:")[2].splitlines() if line.startswith("    ")]
    first, second = (line for line in lines if line.startswith("curl "))
    assert any(line.startswith("export URL=") for line in lines)
    environment = {"PATH": os.environ["PATH"], "URL": relay.url, "KEY": KEY, "MODEL": "a-model"}
    outputs = [
        subprocess.run(["bash", "-c", line], env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=True)
        for line in (first, second)
    ]
    assert outputs[0].stdout.endswith(b"\n\n"), "it was cut inside an event, which the resume would leave out"
    seen, rest = ([int(n) for n in re.findall(rb"^id: st_\S+\.(\d+)$", out.stdout, re.MULTILINE)] for out in outputs)
    assert seen == list(range(1, len(seen) + 1))
    assert seen, "the first line showed no event"
    assert rest == list(range(seen[-1] + 1, len(answer(api, WORDS).events) + 1))
    assert len(upstream.calls) == 1
