"""How much later the first byte comes through the relay than straight from the upstream.

    python tests/measure_first_byte.py [--requests 300]

Upstream, relay and client are processes of their own on loopback; direct and relayed requests alternate, so
that both see the same machine. The relay persists every event in the embedded store. Prints medians and p99
in milliseconds; it asserts nothing, because a busy machine is no fault of the relay.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

sys.path.insert(0, __file__.rsplit("/tests/", 1)[0])

from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, stream

_BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
_CHUNK = '{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}'


def serve_upstream() -> None:
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream(f"data: {_CHUNK}\n\n", "data: [DONE]\n\n"))
        print(upstream.url, flush=True)
        sys.stdin.read()


class Client:
    """One kept-alive connection, as an SDK has it."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def first_byte(self) -> float:
        """Milliseconds from the request to the first body byte."""
        started = time.perf_counter()
        self._connection.request(
            "POST",
            "/v1/chat/completions",
            _BODY,
            {"content-type": "application/json", "authorization": "Bearer k"},
        )
        response = self._connection.getresponse()
        response.read(1)
        elapsed = time.perf_counter() - started
        response.read()
        return elapsed * 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        serve_upstream()
        return
    upstream = subprocess.Popen(
        [sys.executable, __file__, "--upstream"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert upstream.stdout is not None
    url = upstream.stdout.readline().strip()
    try:
        with RelayProcess({"upstreams": [{"name": "u", "base_url": url}]}) as relay:
            direct, relayed = Client(url), Client(relay.url)
            for client in (direct, relayed):
                for _ in range(20):
                    client.first_byte()
            pairs = [(direct.first_byte(), relayed.first_byte()) for _ in range(options.requests)]
    finally:
        upstream.terminate()
        upstream.wait()
    for name, values in zip(("direct", "relay"), zip(*pairs, strict=True), strict=True):
        _print(name, values)
    _print("added", [relay - direct for direct, relay in pairs])


def _print(name: str, values: Sequence[float]) -> None:
    p99 = statistics.quantiles(values, n=100)[98]
    print(f"{name:8} median {statistics.median(values):6.2f} ms   p99 {p99:6.2f} ms")


if __name__ == "__main__":
    main()
