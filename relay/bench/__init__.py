"""`relay bench`: the same work for any OpenAI-compatible gateway, and what it costs there.

A load generator and a paced upstream, each a process of its own, with a gateway between them. The upstream stamps
every event with its number and its send time; the generator checks every number and notes every delay. Targets
take turns in one run, beside the upstream without a gateway (`direct`), whose delays are taken off.

`wire` what upstream and generator say to each other · `upstream` · `http`, `stream` one answer as it is read ·
`jobs`, `begins`, `neighbours`, `load` the generator · `procs` CPU and memory · `measure` the run · `figures` ·
`report` · `gateways`
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

DEFAULT_UPSTREAM = "127.0.0.1:9700"
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.*)", re.DOTALL)
# Streams, events of each, rounds; where the flags say nothing else.
_DEFAULTS = {
    "paced": (100, 200, 3),
    "unpaced": (20, 5000, 3),
    "burst": (1000, 3, 1),
    "first": (1, 1, 10),
    "resume": (1000, 1000, 1),
    "idle": (1000, 2, 1),
    "churn": (100, 20, 1),
    "begin": (20, 1, 1),
    "cold": (300, 1, 1),
    "beside": (600, 3, 1),
    "neighbours": (1, 1, 1),
    "fidelity": (100, 100, 1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `relay bench`."""
    parser.epilog = (
        "Without --target a relay is started and measured. A gateway of your own is measured by pointing it at the "
        f"paced upstream (http://{DEFAULT_UPSTREAM}) and naming it with --target."
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--target", metavar="URL", help="the gateway; without it, a relay is started")
    what.add_argument(
        "--against",
        metavar="[NAME=]URL",
        action="append",
        default=[],
        help="another gateway in the same run, in turns; may be repeated",
    )
    what.add_argument("--nginx", action="store_true", help="start an nginx beside, as the bare proxy")
    what.add_argument("--store", metavar="URL", default="embedded", help="of the relay that is started")
    what.add_argument(
        "--pid",
        metavar="[NAME=]PID[,PID…]",
        action="append",
        default=[],
        help="a gateway's processes, whose CPU and memory (with their children's) are measured",
    )
    what.add_argument(
        "--header", metavar="[NAME=]'K: V'", action="append", default=[], help="sent to every target, or to one"
    )
    what.add_argument("--model", metavar="[NAME=]MODEL", action="append", default=[], help="default: bench")
    how = parser.add_argument_group("the mode (default: paced streams)")
    mode = how.add_mutually_exclusive_group()
    mode.add_argument("--unpaced", action="store_true", help="events as fast as they are taken")
    mode.add_argument("--first", type=_positive, metavar="N", help="N single requests, idle: the first event's delay")
    mode.add_argument("--burst", type=_positive, metavar="N", help="N connections at once")
    mode.add_argument("--beside", type=_positive, metavar="N", help="N streams at once beside --running ones")
    mode.add_argument(
        "--neighbours",
        action="store_true",
        help="--running streams beside long prompts, events of 3 MB, bodies of 31 MB",
    )
    mode.add_argument("--fidelity", action="store_true", help="how many of --streams are equal byte by byte")
    mode.add_argument("--begin", type=_positive, metavar="N", help="N streams begun and ended, connections kept")
    mode.add_argument("--cold", type=_positive, metavar="N", help="the same, N at once on new connections, 5 times")
    mode.add_argument("--idle", type=_positive, metavar="N", help="memory of N live streams without an event")
    mode.add_argument("--churn", type=_positive, metavar="N", help="memory while N streams begin and end")
    mode.add_argument("--resume", action="store_true", help="a stream read again, also by --streams readers at once")
    load = parser.add_argument_group("the load")
    load.add_argument("--streams", type=_positive, metavar="N", help="at once")
    load.add_argument(
        "--running", type=_positive, default=100, metavar="N", help="paced streams that run beside (default 100)"
    )
    load.add_argument("--starts", type=float, default=200.0, metavar="N_PER_S", help="streams begun a second")
    load.add_argument("--rate", type=float, default=20.0, metavar="EVENTS_PER_S", help="of each stream (default 20)")
    load.add_argument("--length", type=_positive, metavar="EVENTS", help="of each stream")
    load.add_argument("--duration", type=float, metavar="S", help="of a paced stream: its length, in seconds")
    load.add_argument("--payload", type=int, default=0, metavar="BYTES", help="of text in an event (at least 33)")
    load.add_argument("--api", choices=("chat", "messages", "responses"), default="chat")
    load.add_argument("--rounds", type=_positive, metavar="N", help="turns of every target")
    where = parser.add_argument_group("where")
    where.add_argument("--upstream-bind", metavar="HOST:PORT", help=f"of the paced upstream ({DEFAULT_UPSTREAM})")
    where.add_argument("--upstream-only", action="store_true", help="run the paced upstream and nothing else")
    where.add_argument("--cpu-target", type=int, metavar="CORE", help="bind what is measured to one core")
    where.add_argument("--cpu-load", type=int, metavar="CORE", help="bind generator and upstream to one core")
    where.add_argument("--json", type=Path, metavar="FILE", help="write all figures (see relay/bench/figures.py)")


def run(arguments: argparse.Namespace) -> int:
    """The exit status: 1 where an event was lost, doubled or out of order, or the benchmark could not run."""
    from relay.bench.measure import BenchError

    if arguments.upstream_only:
        return _upstream_only(arguments.upstream_bind or DEFAULT_UPSTREAM)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as stack:
            results = _measure(arguments, stack)
    except BenchError as error:
        print(f"relay bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if any(any(t["errors"].values()) for t in results["targets"].values()) else 0


def _measure(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    from relay.bench import gateways, measure, report
    from relay.bench.procs import Group

    own = arguments.target is None
    core, load_core = arguments.cpu_target, arguments.cpu_load
    load_average = os.getloadavg()[0]
    if own and core is None and load_core is None:
        core, load_core = measure.two_cores()
    bar = report.Bar()
    bind = arguments.upstream_bind or ("127.0.0.1:0" if own else DEFAULT_UPSTREAM)
    plan, given = _plan(arguments), _given(arguments, core)
    bench = stack.enter_context(measure.Bench(bind, load_core, bar))
    targets: list[measure.Target] = []
    if own:
        targets.append(stack.enter_context(gateways.relay(bench.upstream_url, arguments.store, core)))
    else:
        print(f"The paced upstream is {bench.upstream_url}: the gateway's upstream (relay serve --upstream …).")
    if arguments.nginx:
        targets.append(stack.enter_context(gateways.nginx(bench.upstream_url, core)))
    results = bench.run(plan, [*targets, *given], direct=not arguments.resume, target_on_one=core is not None)
    results |= {
        "machine": measure.machine(),
        "load_average": load_average,
        "cores": {"target": core, "load": load_core},
        "processes": {t.name: Group(t.pids).pids for t in targets},
    }
    bar.clear()
    print(report.text(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _given(arguments: argparse.Namespace, core: int | None) -> list[Any]:
    """The gateways that run already."""
    from relay.bench.measure import BenchError, Target
    from relay.bench.procs import Group

    urls: dict[str, str] = {} if arguments.target is None else {"target": arguments.target}
    for i, given in enumerate(arguments.against):
        named = _NAMED.fullmatch(given) if "://" not in given.partition("=")[0] else None
        urls[named[1] if named else f"against{i + 1}"] = named[2] if named else given
    known = {*urls, "relay", "nginx"}
    headers = dict(_pair(line) for line in _of(arguments.header, None, known))
    targets = []
    for name, url in urls.items():
        numbers = _of(arguments.pid, name, known) + (_of(arguments.pid, None, known) if name == "target" else [])
        try:
            pids = [_positive(pid.strip()) for given in numbers for pid in given.split(",")]
            group = Group(pids)
            if core is not None:
                group.pin(core)
        except (OSError, argparse.ArgumentTypeError) as error:
            raise BenchError(f"--pid {name}: {error}") from None
        own_headers = dict(_pair(line) for line in _of(arguments.header, name, known))
        models = ["bench", *_of(arguments.model, None, known), *_of(arguments.model, name, known)]
        targets.append(Target(name, url, {**headers, **own_headers}, models[-1], tuple(pids)))
    return targets


def _of(values: list[str], name: str | None, known: set[str]) -> list[str]:
    """The values that are for this target; None: for those that name none."""
    found = []
    for value in values:
        named = _NAMED.fullmatch(value)
        owner = named[1] if named and named[1] in known else None
        if owner == name:
            found.append(named[2] if named and owner else value)
    return found


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _plan(arguments: argparse.Namespace) -> Any:
    from relay.bench.measure import BenchError, Plan
    from relay.bench.wire import MAX_LENGTH

    chosen = [mode for mode in _DEFAULTS if mode != "paced" and getattr(arguments, mode)]
    mode = chosen[0] if chosen else "paced"
    streams, length, rounds = _DEFAULTS[mode]
    count = int(getattr(arguments, mode, 0))
    if mode in ("burst", "idle", "beside", "cold"):
        streams = count
    if arguments.duration is not None:
        length = max(1, round(arguments.duration * arguments.rate))
    length = arguments.length or length
    if length > MAX_LENGTH or arguments.rate <= 0:
        raise BenchError(f"--length may be up to {MAX_LENGTH:,}, and --rate must be above 0 (see --unpaced)")
    streams, rounds = arguments.streams or streams, arguments.rounds or rounds
    total = {"churn": count, "begin": count, "resume": -(-streams // 50)}
    repeats = {"first": max(1, count // rounds), "cold": 5, "neighbours": 5}
    beside = mode in ("beside", "neighbours")
    return Plan(
        mode=mode,
        api=arguments.api,
        streams=streams,
        rate=arguments.rate,
        length=length,
        payload=arguments.payload,
        rounds=rounds,
        total=total.get(mode, 0),
        running=arguments.running if beside else 0,
        starts=arguments.starts,
        ramp=0.0 if mode == "beside" else None,
        repeats=repeats.get(mode, 50),
        settle=5.0 if beside else 1.0,
    )


def _upstream_only(bind: str) -> int:
    from relay.bench import upstream

    return upstream.main(["--bind", bind])


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
