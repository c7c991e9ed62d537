"""How much later the first byte, and each event, come through a proxy than straight from the relay.

    python tests/measure_proxies.py [--requests 200] [--streams 10]

Upstream, relay, proxies and client are processes of their own on loopback; the ways take turns, so that all see
the same machine. Prints p50 and p99 in milliseconds and what each proxy adds (of the medians, and of the p99s);
it asserts nothing, because a busy machine is no fault of a proxy.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from urllib.parse import urlsplit

sys.path.insert(0, __file__.rsplit("/tests/", 1)[0])

from tests.deploy.proxies import NAMES, proxy
from tests.support.oracle import DONE, PATH, frame
from tests.support.processes import RelayProcess
from tests.support.scripted import Pause, ScriptedUpstream, Step, stream

_EVENTS = 50
_GAP = 0.02
_HEADERS = {"content-type": "application/json", "authorization": "Bearer k"}


def serve_upstream() -> None:
    paced: list[bytes | str | Step] = []
    for n in range(1, _EVENTS + 1):
        paced += [frame(n), Pause(_GAP)]
    with ScriptedUpstream() as upstream:
        upstream.on("short", *stream(frame(1), DONE))
        upstream.on("paced", *stream(*paced, DONE))
        print(upstream.url, flush=True)
        sys.stdin.read()


class Way:
    """One kept-alive connection, as an SDK has it, and what was measured on it."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.first_bytes: list[float] = []
        self.gaps: list[float] = []
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def ask(self, model: str) -> http.client.HTTPResponse:
        self._connection.request("POST", PATH, f'{{"model":"{model}","stream":true,"messages":[]}}', _HEADERS)
        return self._connection.getresponse()

    def short(self) -> float:
        """Milliseconds from the request to the first body byte."""
        began = time.perf_counter()
        response = self.ask("short")
        response.read(1)
        elapsed = time.perf_counter() - began
        response.read()
        return elapsed * 1000

    def paced(self) -> list[float]:
        """Milliseconds between two events that the upstream sends 20 ms apart."""
        response = self.ask("paced")
        arrivals = []
        while line := response.readline():
            if line.startswith(b"data: {"):
                arrivals.append(time.perf_counter())
        assert len(arrivals) == _EVENTS
        return [(later - earlier) * 1000 for earlier, later in pairwise(arrivals)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        serve_upstream()
        return
    upstream = subprocess.Popen(
        [sys.executable, __file__, "--upstream"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert upstream.stdout is not None
    try:
        with ExitStack() as stack:
            config = {"upstreams": [{"name": "u", "base_url": upstream.stdout.readline().strip()}]}
            relay = stack.enter_context(RelayProcess(config))
            ways = [Way("direct", relay.url)]
            ways += [Way(name, stack.enter_context(proxy(name, [relay.url])).url) for name in NAMES]
            for way in ways:
                for _ in range(20):
                    way.short()
            for _ in range(options.requests):
                for way in ways:
                    way.first_bytes.append(way.short())
            for _ in range(options.streams):
                for way in ways:
                    way.gaps += way.paced()
    finally:
        upstream.terminate()
        upstream.wait()
    report(ways)


def report(ways: list[Way]) -> None:
    print(f"{'':16}  first byte, ms                  gap of {_GAP * 1000:.0f} ms")
    print(f"{'':16}     p50     p99   added           p50     p99   added")
    direct = ways[0]
    for way in ways:
        line = f"{way.name:16}"
        for mine, base in ((way.first_bytes, direct.first_bytes), (way.gaps, direct.gaps)):
            (p50, p99), (base50, base99) = (middle_and_end(v) for v in (mine, base))
            line += f"  {p50:6.2f}  {p99:6.2f}   {p50 - base50:+.2f} {p99 - base99:+6.2f}"
        print(line)


def middle_and_end(values: list[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=100)[98]


if __name__ == "__main__":
    main()
