"""`python -m tests.torture`: see the package's own words, and `make torture`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import uvloop

from tests.torture.plan import schedule
from tests.torture.report import as_json, failures, figures, table
from tests.torture.run import Options, run
from tests.torture.world import REPLICAS

TOPOLOGIES = ("standalone", "sentinel", "cluster")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--topology", choices=(*TOPOLOGIES, "all"), default="standalone")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="of each replica")
    parser.add_argument("--sessions", type=int, default=24, help="so many at once")
    parser.add_argument("--schedule", action="store_true", help="print the faults of this seed and end")
    parser.add_argument("--logs", type=Path, help="a folder for the replicas' logs")
    asked = parser.parse_args()
    failed = 0
    for topology in TOPOLOGIES if asked.topology == "all" else (asked.topology,):
        options = Options(asked.seed, asked.seconds, topology, asked.workers, asked.sessions)
        if asked.schedule:
            print(*schedule(asked.seed, asked.seconds, topology, REPLICAS, asked.workers), sep="\n")
            continue
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome = runner.run(run(options))
        if outcome.found:
            failed += 1
            print(failures(outcome), flush=True)
        shown = figures(outcome)
        print(f"\n{topology}, seed {asked.seed}:\n{table(shown)}\n{as_json(shown)}", flush=True)
        if asked.logs is not None:
            asked.logs.mkdir(parents=True, exist_ok=True)
            for number, log in enumerate(outcome.relay_logs):
                (asked.logs / f"{topology}-{asked.seed}-{number}.log").write_text(log)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
