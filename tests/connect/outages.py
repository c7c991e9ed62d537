"""The real agents beside `relay connect`, while the line to the far relay fails: what a turn came to, and what it cost.

    python -m tests.connect.outages [--agent NAME …] [--outage NAME …] >> results
    python -m tests.agents.pages < results

Each turn is a text with a call of the agent's shell, and a text about what that gave. Each is a line of JSON, of which
`pages` makes a table in `deploy/agents`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.agents.answering import AFTER_CALL, Answering
from tests.agents.install import binary
from tests.agents.running import WITH_TOOLS, run
from tests.support.cutting import Blackhole, FaultProxy, HalfOpen, Mode, Pass, Refuse
from tests.support.near import NearRelay
from tests.support.processes import RelayProcess
from tests.support.stores import valkey_server
from tests.support.waiting import wait_until

PAUSE = 0.2
"""Between two words: 20 before the call, and 20 after it."""
BEFORE = 2.0
"""Seconds of the turn's first answer before the line fails."""
LONGEST = 600.0
# The rig's agents give a silent stream up after 5 s, where they are told to; by themselves they wait for 300 s.
ENV = {"RELAY_STREAMS__HEARTBEAT": "2s", "RELAY_LOG__LEVEL": "info"}

KILLED = "the far producer is killed"

Over = threading.Event


@dataclass(frozen=True)
class Far:
    """The far relay and the line to it, which leads to the first of its replicas that is there."""

    replicas: Sequence[RelayProcess]
    line: FaultProxy


def _cut_every_2_s(far: Far, over: Over) -> None:
    while not over.wait(2.0):
        far.line.mode = Refuse()
        far.line.mode = Pass()


def _once(mode: Mode, seconds: float) -> Callable[[Far, Over], None]:
    def happen(far: Far, over: Over) -> None:
        if not over.wait(BEFORE):
            far.line.mode = mode
            over.wait(seconds)
            far.line.mode = Pass()

    return happen


def _half_open(far: Far, over: Over) -> None:
    if not over.wait(BEFORE):
        far.line.mode = HalfOpen()


def _killed(far: Far, over: Over) -> None:
    if not over.wait(BEFORE):
        far.replicas[0].kill()


OUTAGES: dict[str, Callable[[Far, Over], None]] = {
    "cut every 2 s": _cut_every_2_s,
    "half-open": _half_open,
    "away for 30 s": _once(Refuse(), 30),
    "silent for 90 s": _once(Blackhole(), 90),
    "away for 5 min": _once(Refuse(), 300),
    KILLED: _killed,
}


@dataclass(frozen=True)
class Result:
    """`outcome` is "complete" or what it was instead; `calls` those that the upstream got, `waste` the deltas that were
    not of the answers, `asked_again` how often the near relay was asked for what it had."""

    agent: str
    outage: str
    outcome: str
    calls: int
    made: int
    waste: int
    tool_runs: int
    asked_again: int
    seconds: float
    output: str = ""
    """What the agent has printed, where it was not complete."""


@contextmanager
def far_relay(upstream: Answering, folder: Path, *, shared: bool) -> Iterator[Far]:
    """One replica; or two that share a store, behind which another relay stands, so that the one can go on with the
    other's streams."""
    with ExitStack() as stack:
        config: dict[str, Any] = {"upstreams": [{"name": "rig", "base_url": upstream.url}]}
        if shared:
            origin = stack.enter_context(RelayProcess(config))
            store = stack.enter_context(valkey_server(folder / "store", unix=True))
            config = {"upstreams": [{"name": "origin", "base_url": origin.url}], "store": {"url": store.url}}
        replicas = [stack.enter_context(RelayProcess(config)) for _ in range(2 if shared else 1)]
        ports = [urlsplit(replica.url).port or 0 for replica in replicas]
        yield Far(replicas, stack.enter_context(FaultProxy(*ports)))


def play(agent: str, outage: str, folder: Path) -> Result:
    over = Over()
    with Answering(PAUSE) as upstream:
        upstream.begin(tool=True)
        with (
            far_relay(upstream, folder, shared=outage == KILLED) as far,
            NearRelay(f"http://127.0.0.1:{far.line.port}", **ENV) as near,
        ):
            wait_until(lambda: "is a relay" in near.log(), 30, "the far relay to be found")

            def fail() -> None:
                while not upstream.generations and not over.wait(0.05):
                    pass
                OUTAGES[outage](far, over)

            failing = threading.Thread(target=fail)
            failing.start()
            began = time.monotonic()
            try:
                ran = run(agent, near.url, folder / "agent", LONGEST)
            finally:
                over.set()
                failing.join()
            seconds = time.monotonic() - began
            upstream.wait_idle(60)
            again = near.log().count("stream resumed")
    whole = re.sub(r"\s+", " ", "".join(AFTER_CALL)).strip() in re.sub(r"\s+", " ", ran.output)
    outcome = "complete" if ran.code == 0 and whole else "no end" if ran.code is None else "failed"
    generations = upstream.generations
    made = sum(each.made for each in generations)
    used = sum({each.whole for each in generations}) if outcome == "complete" else 0
    return Result(
        *(agent, outage, outcome, len(generations), made, made - used, ran.tool_runs, again, round(seconds, 1)),
        "" if outcome == "complete" else ran.output[-2000:],
    )


def main() -> None:
    given = argparse.ArgumentParser(prog="tests.connect.outages", description=__doc__.partition("\n")[0])
    given.add_argument("--agent", action="append", choices=WITH_TOOLS, help="only this one; may be given repeatedly")
    given.add_argument("--outage", action="append", choices=OUTAGES, help="only this one; may be given repeatedly")
    options = given.parse_args()
    for agent in options.agent or WITH_TOOLS:
        if binary(agent) is None:
            print(f"{agent} is not installed (python tests/agents/install.py): left out", file=sys.stderr)
            continue
        for outage in options.outage or OUTAGES:
            with tempfile.TemporaryDirectory(prefix="relay-agent-", ignore_cleanup_errors=True) as folder:
                print(json.dumps(asdict(play(agent, outage, Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
