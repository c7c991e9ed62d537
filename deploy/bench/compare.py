"""`make bench`: the relay beside nginx, Go's proxy, Envoy, LiteLLM and Portkey, each on one core, in one run; writes
BENCHMARKS.md and the plan in deploy/README.md.

    python deploy/bench/compare.py [--only ROW …] [--without PEER …] [--quick] [--write]

Needs two cores: what is measured is bound to one, the load and the relay's store to the other (or the store to a
third, --cpu-store). All figures go to `.bench/results.json`, row by row as they are found; with --write the tables in
deploy/BENCHMARKS.md and the plan in deploy/README.md are made anew from that file, without --write the tables are only
printed. --quick proves that all of it runs; its figures mean nothing and are never written there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import capacity
import peers
import proxies
import redis
import render

from relay.bench import gateways
from relay.bench.measure import Bench, BenchError, Plan, Target, machine, two_cores
from relay.bench.report import Bar

PLAN = peers.ROOT / "deploy/README.md"
DOCUMENT = peers.ROOT / "deploy/BENCHMARKS.md"
RESULTS = peers.HOME / "results.json"
_RATE = 20.0
_LOADS = (100, 300, 600, 1000)
PEERS = ("nginx", "go", "envoy", "portkey", "litellm", "asgi")
_PLAIN = PEERS[:3]
_SCALE = {50: 80.0, 200: 20.0, 1000: 4.0, 2000: 2.0}
"""Streams and the rate of each: 4,000 events/s whatever their number."""


@dataclass
class Comparison:
    """The settings of a run and what it has found so far."""

    bench: Bench
    core: int | None
    store_core: int | None
    quick: bool
    without: list[str]
    rows: dict[str, Any] = field(default_factory=dict)

    def plan(self, **changes: Any) -> Plan:
        plan = Plan(**{"rate": _RATE, "length": 200, "rounds": 2, **changes})
        if not self.quick:
            return plan
        plan = replace(plan, streams=min(plan.streams, 10), total=min(plan.total, 50), length=min(plan.length, 40))
        plan = replace(plan, running=min(plan.running, 10), settle=0.5 if plan.running else 0.0)
        return replace(plan, rate=max(plan.rate, 20.0), repeats=min(plan.repeats, 5), rounds=1)

    def relay(self, stack: ExitStack, **options: Any) -> tuple[Target, str]:
        return stack.enter_context(peers.relay(self.bench.upstream_url, self.core, self.store_core, **options))

    def others(self, stack: ExitStack, *names: str) -> list[Target]:
        start: dict[str, Callable[..., Any]] = {
            "nginx": gateways.nginx,
            "go": lambda upstream, core: proxies.go(upstream, core, peers.HOME),
            "envoy": proxies.envoy,
            "portkey": peers.portkey,
            "litellm": peers.litellm,
        }
        wanted = [name for name in names if name not in self.without]
        return [stack.enter_context(start[name](self.bench.upstream_url, self.core)) for name in wanted]

    def measure(self, row: str, plan: Plan, targets: list[Target], **options: Any) -> dict[str, Any]:
        results = self.bench.run(plan, targets, **options)
        self.rows[row] = results
        for warning in results["warnings"]:
            print(f"\n{row}: {warning}", file=sys.stderr)
        return results


def cpu(c: Comparison) -> None:
    """CPU per event, with streams of 20 events/s."""
    with ExitStack() as stack:
        relay, _ = c.relay(stack)
        others = c.others(stack, *_PLAIN, "portkey")
        c.measure("cpu_300", c.plan(streams=300), [relay, *others])
        # Portkey's core is full long before.
        c.measure("cpu_600", c.plan(streams=600), [relay, *(o for o in others if o.name != "portkey")])
    with ExitStack() as stack:
        if few := c.others(stack, "litellm"):
            c.measure("cpu_litellm", c.plan(streams=20, rounds=1), few)


def latency(c: Comparison) -> None:
    """What an event's way takes longer, at half of what the relay's core can take."""
    if "cpu_300" not in c.rows:
        raise BenchError("the row `latency` takes its load from the row `cpu`: measure both (--only cpu latency)")
    with ExitStack() as stack:
        relay, _ = c.relay(stack)
        streams = _half(c.rows["cpu_300"], "relay")
        c.measure("latency", c.plan(streams=streams, length=160), [relay, *c.others(stack, *_PLAIN, "portkey")])
    with ExitStack() as stack:
        if few := c.others(stack, "litellm"):
            streams = _half(c.rows["cpu_litellm"], "litellm")
            c.measure("latency_litellm", c.plan(streams=streams, rounds=1), few)


def _half(row: dict[str, Any], name: str) -> int:
    """So many streams use half a core."""
    return max(1, int(0.5e6 / row["targets"][name]["cpu_us_per_event"] / _RATE))


def first(c: Comparison) -> None:
    """The first event of single requests, the machine idle."""
    with ExitStack() as stack:
        relay, _ = c.relay(stack)
        plan = c.plan(mode="first", streams=1, length=1, repeats=50, rounds=6)
        c.measure("first", plan, [relay, *c.others(stack, *_PLAIN)])


def unpaced(c: Comparison) -> None:
    """20 streams as fast as they come."""
    with ExitStack() as stack:
        relay, _ = c.relay(stack)
        plan = c.plan(mode="unpaced", streams=20, length=10_000, rounds=5)
        c.measure("unpaced", plan, [relay, *c.others(stack, *_PLAIN)])


def scale(c: Comparison) -> None:
    """CPU per event with more and more live streams, the event rate being the same."""
    with ExitStack() as stack:
        relay, _ = c.relay(stack)
        for streams, rate in _SCALE.items():
            length = int(rate * (streams / 200 + 10))
            c.measure(f"scale_{streams}", c.plan(streams=streams, rate=rate, length=length), [relay], direct=False)


def neighbours(c: Comparison) -> None:
    """100 small streams beside long prompts, events of 3 MB and requests of 31 MB."""
    with ExitStack() as stack:
        targets = [c.relay(stack)[0], *c.others(stack, *_PLAIN)]
        plan = c.plan(mode="neighbours", streams=1, running=100, length=1, repeats=5, rounds=1, settle=5.0)
        c.measure("neighbours", plan, targets)


def fidelity(c: Comparison) -> None:
    """Streams whose bytes are those that the upstream sent, under a load that the core cannot take at its end."""
    with ExitStack() as stack:
        targets = [c.relay(stack)[0], *c.others(stack, *_PLAIN)]
        for streams in _LOADS:
            c.measure(f"fidelity_{streams}", c.plan(mode="fidelity", streams=streams, length=40, rounds=1), targets)


def memory(c: Comparison) -> None:
    """Of live streams, of the log, and over many streams."""
    with ExitStack() as stack:
        targets = [c.relay(stack)[0], *c.others(stack, *_PLAIN)]
        c.measure("idle", c.plan(mode="idle", streams=1000, length=2, rounds=1), targets)
    with ExitStack() as stack:
        relay, url = c.relay(stack)
        client = stack.enter_context(redis.Redis.from_url(url))
        plan = c.plan(mode="unpaced", streams=100, length=1000, rounds=1)
        before = client.info("memory")["used_memory"]
        # Without a warm-up, so that these streams are all that the store gains.
        answer = c.bench.job(relay, plan.job(), "relay: bytes in the store")
        stored = client.info("memory")["used_memory"] - before
        c.rows["store"] = {
            "stored_bytes": stored,
            "frames_bytes": answer["body_bytes"],
            "ratio": stored / answer["body_bytes"],
            "errors": answer["errors"],
        }
    with ExitStack() as stack:
        short = {"RELAY_STREAMS__RETENTION": "5s", "RELAY_STREAMS__TOMBSTONE": "5s"}
        relay, _ = c.relay(stack, settings=short)
        plan = c.plan(mode="churn", streams=100, total=10_000, length=20, rounds=1, settle=6.0)
        c.measure("churn", plan, [relay], direct=False)


def resume(c: Comparison) -> None:
    """A stream of 1,000 events read again: alone, and by 1,000 readers at once, of one stream and of 100."""
    with ExitStack() as stack:
        relay, _ = c.relay(stack)
        for row, total in (("resume", 1), ("resume_many", 100)):
            plan = c.plan(mode="resume", streams=1000, length=1000, total=total, repeats=100, rounds=1)
            c.measure(row, plan, [relay], direct=False)


def fleet(c: Comparison) -> None:
    """1,000 readers come back at once, each to a stream of its own."""
    with ExitStack() as stack:
        relay, _ = c.relay(stack)
        plan = c.plan(mode="resume", streams=1000, length=1000, total=1000, repeats=20, rounds=1)
        c.measure("fleet", plan, [relay], direct=False)


def begin(c: Comparison) -> None:
    """What a stream costs to begin and end: at a steady rate over kept connections, and 300 at once on new ones."""
    with ExitStack() as stack:
        targets = [c.relay(stack)[0], *c.others(stack, *_PLAIN)]
        c.measure("begin", c.plan(mode="begin", streams=20, length=1, total=1600), targets)
        c.measure("cold", c.plan(mode="cold", streams=300, length=1, repeats=3), targets)


def burst(c: Comparison) -> None:
    """1,000 connections at once; 600 begun beside streams that run, in the same moment and within 3 s."""
    with ExitStack() as stack:
        targets = [c.relay(stack)[0], *c.others(stack, *_PLAIN)]
        c.measure("burst", c.plan(mode="burst", streams=1000, rate=1.0, length=3), targets)
        plan = c.plan(mode="beside", streams=600, running=100, length=3, settle=5.0)
        c.measure("beside", replace(plan, ramp=0.0), targets)
        c.measure("beside_ramp", replace(plan, ramp=3.0), targets)


def workers(c: Comparison) -> None:
    """One worker and two, bound to no core, so that the second has one beside the load and the store."""
    with ExitStack() as stack:
        targets = []
        for count in (1, 2):
            settings, name = {"RELAY_WORKERS": str(count)}, f"workers_{count}"
            target, _ = stack.enter_context(
                peers.relay(c.bench.upstream_url, None, c.store_core, settings=settings, name=name)
            )
            targets.append(target)
        c.measure("workers_cpu", c.plan(streams=300, length=160), targets, direct=False)
        c.measure("workers_unpaced", c.plan(mode="unpaced", streams=20, length=5000), targets, direct=False)
        plan = c.plan(mode="idle", streams=1000, length=2, rounds=1)
        c.measure("workers_shared", plan, targets, direct=False)


def asgi(c: Comparison) -> None:
    """The same application under other ASGI servers."""
    with ExitStack() as stack:
        targets = [c.relay(stack)[0], *(c.relay(stack, server=name)[0] for name in ("uvicorn", "granian"))]
        c.measure("asgi_cpu", c.plan(streams=200, length=160), targets, direct=False)
        c.measure("asgi_unpaced", c.plan(mode="unpaced", streams=20, length=10_000), targets, direct=False)


def guarded(c: Comparison) -> None:
    """What sealed events and clients' keys cost, in live streams and in short ones from begin to end."""
    with ExitStack() as stack:
        plain, _ = c.relay(stack)
        sealed, _ = c.relay(stack, settings=peers.sealed(), name="sealed")
        settings, header = peers.keyed(c.bench.upstream_url)
        keyed, _ = c.relay(stack, settings=settings, name="keyed")
        targets = [plain, sealed, replace(keyed, headers=header)]
        c.measure("guarded_cpu", c.plan(streams=200, length=160), targets, direct=False)
        plan = c.plan(mode="churn", streams=10, total=2000, length=1, settle=0.0)
        c.measure("guarded_churn", plan, targets, direct=False)


ROWS = {
    row.__name__: row
    for row in (
        *(cpu, latency, first, unpaced, scale, begin, burst, neighbours, fidelity, memory, resume, fleet),
        *(workers, asgi, guarded),
    )
}


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    results = RESULTS if not arguments.quick else RESULTS.with_name("quick.json")
    try:
        if not arguments.render:
            _measure(arguments, results)
        found = json.loads(results.read_text())
        print(render.tables(found))
        if arguments.quick:
            print("\n--quick: these loads are not what the rows say, and the figures mean nothing.")
        if arguments.write and not arguments.quick:
            DOCUMENT.write_text(render.into(DOCUMENT.read_text(), found))
            PLAN.write_text(capacity.into(PLAN.read_text(), found))
    except BenchError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if render.lost(found) else 0


def _measure(arguments: argparse.Namespace, results: Path) -> None:
    names = [name for name in PEERS if name not in arguments.without]
    peers.install(names)
    core, load_core = two_cores() if arguments.cpu_target is None else (arguments.cpu_target, arguments.cpu_load)
    store_core = load_core if arguments.cpu_store is None else arguments.cpu_store
    bar, load_average, began = Bar(), os.getloadavg()[0], time.monotonic()
    with Bench(core=load_core, progress=bar) as bench:
        comparison = Comparison(bench, core, store_core, arguments.quick, arguments.without)
        wanted = {name: ROWS[name] for name in arguments.only or ROWS}
        if "asgi" in arguments.without:
            wanted.pop("asgi", None)
        if arguments.only and results.exists():
            comparison.rows |= json.loads(results.read_text())["rows"]
        for row in wanted.values():
            row(comparison)
            disclosed = {**peers.DISCLOSED, **proxies.DISCLOSED}
            found = {
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine(),
                "load_average": load_average,
                "seconds": time.monotonic() - began,
                "cores": {"target": core, "load": load_core, "store": store_core},
                "versions": peers.versions(names),
                "disclosed": {name: text for name, text in disclosed.items() if name in ("relay", *names)},
                "rows": comparison.rows,
            }
            results.write_text(json.dumps(found, indent=1) + "\n")
            bar.clear()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--without", nargs="+", default=[], metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures mean nothing")
    parser.add_argument("--render", action="store_true", help="measure nothing; show the results there are")
    parser.add_argument("--write", action="store_true", help="write the tables into deploy/BENCHMARKS.md")
    parser.add_argument("--cpu-target", type=int, metavar="CORE")
    parser.add_argument("--cpu-load", type=int, metavar="CORE")
    parser.add_argument("--cpu-store", type=int, metavar="CORE", help="default: the load's")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
