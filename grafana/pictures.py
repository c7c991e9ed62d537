"""Plot the dashboards' own queries after two minutes of load on real relays, into grafana/pictures/.

    python grafana/pictures.py [seconds]

A tool for who changes the dashboards; needs prometheus, matplotlib and pillow. Two relays share a real Valkey, which
goes away for some seconds in the middle, and the upstream gets slow for a while. Nothing shown is made up.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from grafana import build, plot
from tests.observe.load import ENV, MODELS, Load, Prometheus, prometheus_server, settings
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream
from tests.support.stores import Server, valkey_server

CLIENTS = 14
# How often what happens beside answers that complete: failures, stopped, abandoned, resumed live, after the end,
# joined, missed, not logged, passed through, refused.
WEIGHTS = (1, 1, 1, 1, 2, 2, 16, 14, 1, 0.7, 1, 4, 2)
SLOW_WEIGHTS = (5, 3, 4, 5, 3, 4, 10, 8, 1, 0.7, 1, 3, 5)
VARIABLES = ("$namespace", "$api", "$upstream", "$model")


def run(seconds: float) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-pictures-")))
        store = stack.enter_context(valkey_server(folder / "valkey", config=[("maxmemory", "16mb")]))
        upstream = stack.enter_context(ScriptedUpstream())
        config = settings(upstream.url, store.url)
        relays = [stack.enter_context(RelayProcess(config, ENV)) for _ in range(2)]
        targets = [{"targets": [relay.config["metrics_bind"]]} for relay in relays]
        prometheus = stack.enter_context(prometheus_server(folder, targets, interval="1s"))
        load = Load(relays, upstream)
        start = time.time()
        traffic(load, store.servers[0], prometheus, seconds)
        until = time.time()
        (build.HERE / "pictures").mkdir(exist_ok=True)
        for name in build.BOARDS:
            board = json.loads((build.HERE / name).read_text(encoding="utf-8"))
            asked = Asked(prometheus, start + 5, until)
            file = build.HERE / "pictures" / f"{Path(name).stem}.png"
            plot.draw(board, asked.series, asked.exemplars, file)
            print(f"grafana/pictures/{file.name}: {file.stat().st_size // 1024} KiB")


def traffic(load: Load, store: Server, prometheus: Prometheus, seconds: float) -> None:
    """Mostly answers that complete; some of everything else, more while the upstream is slow; one outage."""
    rare = load.scenarios()[len(MODELS) :]
    random = Random(7)
    start = time.monotonic()
    slow = out = False
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(CLIENTS + 1, "clients") as pool:
        while (gone := (time.monotonic() - start) / seconds) < 1:
            if not slow and 0.25 < gone < 0.5:
                load.vary(1.6)
                slow = True
            if slow and gone > 0.5:
                load.vary(1.0)
                slow = False
            if not out and gone > 0.65:
                running.add(pool.submit(load.outage, store, prometheus))
                out = True
            if len(running) < CLIENTS * (0.55 + 0.35 * math.sin(gone * 9)):
                other = random.choices(rare, SLOW_WEIGHTS if slow else WEIGHTS)[0]
                odd = random.random() < (0.4 if slow else 0.25)
                running.add(pool.submit(_attempt, other if odd else _completed(load, random)))
            time.sleep(0.06)  # arrivals of clients
            running -= {job for job in running if job.done() and job.exception() is None}
            for job in running:
                if job.done():
                    job.result()


def _completed(load: Load, random: Random) -> Callable[[], None]:
    model = random.choices(list(MODELS), weights=(6, 3, 2, 4, 2, 1))[0]
    return lambda: load.completed(model)


def _attempt(scenario: Callable[[], None]) -> None:
    # During the outage resumes miss and streams end otherwise than a scenario asserts: that is what is to be seen.
    with suppress(AssertionError, OSError, TimeoutError, IndexError):
        scenario()


class Asked:
    """A panel's queries, as Grafana asks them for the time of the load."""

    def __init__(self, prometheus: Prometheus, start: float, end: float) -> None:
        self._prometheus, self._start, self._end = prometheus, start, end

    def series(self, target: Any) -> plot.Series:
        expression = self._filled(target["expr"])
        if target.get("instant"):
            found = self._prometheus.ask("query", query=expression, time=self._end)["result"]
            return [(series["metric"], [_point(series["value"])]) for series in found]
        bounds = {"start": self._start, "end": self._end, "step": 1}
        found = self._prometheus.ask("query_range", query=expression, **bounds)["result"]
        return [(series["metric"], [_point(point) for point in series["values"]]) for series in found]

    def exemplars(self, target: Any) -> list[tuple[float, float]]:
        bounds = {"start": self._start, "end": self._end}
        found = self._prometheus.ask("query_exemplars", query=self._filled(target["expr"]), **bounds)
        return [(each["timestamp"], float(each["value"])) for series in found for each in series["exemplars"]]

    def _filled(self, expression: str) -> str:
        expression = expression.replace("$__rate_interval", "10s")
        expression = expression.replace("$__range", f"{self._end - self._start:.0f}s")
        for name in VARIABLES:
            expression = expression.replace(name, ".*")
        return expression


def _point(pair: list[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


if __name__ == "__main__":
    run(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0)
