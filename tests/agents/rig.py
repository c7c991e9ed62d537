"""The real agents, cut and killed in every place, with and without relays: what a turn came to, and what it cost.

    python -m tests.agents.rig [--agent NAME …] [--setup NAME …] [--only WORD …] [--streams NAME=VALUE …] > results
    python -m tests.agents.pages < results

Each case is one turn of one agent: a text, or a text with a call of its shell. Beside the turn's outcome it counts the
requests that the agent sent, the calls that the upstream got, the deltas that it generated, how many of them were not
of the answers that were used, and how often the tool ran. Each is a line of JSON, of which `pages` makes the tables in
`deploy/agents`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.agents.answering import AFTER_CALL, TEXT, Answering, Trouble
from tests.agents.cutter import Cutter, How, Place, Plan
from tests.agents.install import binary
from tests.agents.running import AGENTS, WITH_TOOLS, run
from tests.support.processes import RelayProcess
from tests.support.stores import valkey_server

PAUSE = 0.03
SETUPS = ("direct", "one relay", "two relays")
_TEXT_PLACES: tuple[Place, ...] = ("before the head", "in the first event", "in text", "at the end")
_TOOL_PLACES: tuple[Place, ...] = (*_TEXT_PLACES[:3], "in the call", "after the call", "at the end")
# Shorter than by default, so that neither a silence nor a late refusal need last as long as it does in life.
STREAMS = {"heartbeat": "2s", "patience": "2s"}
_WAYS: tuple[How, ...] = ("rst", "fin")


@dataclass(frozen=True)
class Case:
    """One turn. `fault` is what befalls it."""

    tool: bool
    fault: str
    plan: Plan
    setups: tuple[str, ...] = SETUPS
    trouble: Trouble | None = None


@dataclass(frozen=True)
class Result:
    """`outcome` is "complete" or what it was instead; `waste` the deltas that were not of the answers used, and
    `unstreamed` the calls for which the agent gave up streaming."""

    agent: str
    setup: str
    turn: str
    fault: str
    outcome: str
    requests: int
    calls: int
    made: int
    waste: int
    unstreamed: int
    tool_runs: int
    seconds: float


def cases(agent: str) -> Iterator[Case]:
    for tool in (False, True) if agent in WITH_TOOLS else (False,):
        yield Case(tool, "none", Plan())
        for place in _TOOL_PLACES if tool else _TEXT_PLACES:
            for how in _WAYS:
                yield Case(tool, f"{place}, {how}", Plan(place, how))
        yield Case(tool, "the upstream breaks in text", Plan(), trouble="breaks")
        if not tool:
            yield Case(tool, "the upstream is silent in text", Plan(), trouble="is silent")
            yield Case(tool, "the upstream refuses late (429)", Plan(), trouble="refuses late")
        yield Case(tool, "the producing replica is killed", Plan("in text", kill=True), SETUPS[2:])
        yield Case(tool, "cut, then the reading replica is killed", Plan("in text", then_kill=True), SETUPS[2:])


class Rig:
    """One setup: an upstream, perhaps relays, and the balancer in front."""

    def __init__(self, upstream: Answering, relays: Sequence[RelayProcess]) -> None:
        self._upstream = upstream
        self._relays = relays
        self._killed: set[int] = set()
        urls = [relay.url for relay in relays] or [upstream.url]
        self.cutter = Cutter(*urls, kill=self._kill)

    def _kill(self, number: int) -> None:
        self._relays[number].kill()
        self._killed.add(number)

    def play(self, agent: str, setup: str, case: Case) -> Result:
        self._upstream.begin(tool=case.tool, trouble=case.trouble)
        self.cutter.begin(case.plan)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="relay-agent-", ignore_cleanup_errors=True) as folder:
            ran = run(agent, self.cutter.url, Path(folder))
        seconds = time.monotonic() - began
        self._upstream.wait_idle(90)
        for number in sorted(self._killed):
            self._relays[number].start()
        self._killed.clear()
        generations = self._upstream.generations
        made = sum(each.made for each in generations)
        # A turn's answers: the text, or what comes before and after the call.
        used = sum({each.whole for each in generations})
        last = "".join(AFTER_CALL if case.tool else TEXT)
        whole = re.sub(r"\s+", " ", last).strip() in re.sub(r"\s+", " ", ran.output)
        outcome = "complete" if ran.code == 0 and whole else "no end" if ran.code is None else "failed"
        turn = "tool" if case.tool else "text"
        calls = len(generations)
        waste = made - used if outcome == "complete" else made
        return Result(
            *(agent, setup, turn, case.fault, outcome, self.cutter.asked, calls, made, waste),
            *(sum(not each.streamed for each in generations), ran.tool_runs, round(seconds, 1)),
        )


@contextmanager
def rigged(setup: str, streams: Mapping[str, str]) -> Iterator[Rig]:
    """`streams` are settings of the relays beside the rig's own."""
    count = {"direct": 0, "one relay": 1, "two relays": 2}[setup]
    with ExitStack() as stack:
        upstream = stack.enter_context(Answering(PAUSE))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-rig-")))
        relays = []
        if count:
            store = stack.enter_context(valkey_server(folder, unix=True))
            config = {
                "upstreams": [{"name": "rig", "base_url": upstream.url}],
                "store": {"url": store.url},
                "streams": {**STREAMS, **dict(streams)},
                "drain": {"timeout": "1s"},
            }
            relays = [stack.enter_context(RelayProcess(config)) for _ in range(count)]
        rig = Rig(upstream, relays)
        stack.enter_context(rig.cutter)
        yield rig


def main() -> None:
    given = argparse.ArgumentParser(prog="tests.agents.rig", description=__doc__.partition("\n")[0])
    given.add_argument("--agent", action="append", choices=AGENTS, help="only this one; may be given more than once")
    given.add_argument("--setup", action="append", choices=SETUPS, help="only this one; may be given more than once")
    given.add_argument("--only", action="append", help="only faults with this word; may be given more than once")
    given.add_argument("--turn", choices=("text", "tool"), help="only turns of this kind")
    given.add_argument("--streams", action="append", default=[], metavar="NAME=VALUE", help="a setting of `streams`")
    options = given.parse_args()
    given_streams = [tuple(each.split("=", 1)) for each in options.streams]
    for setup in options.setup or SETUPS:
        with rigged(setup, dict(given_streams)) as rig:
            for agent in options.agent or AGENTS:
                if binary(agent) is None:
                    print(f"{agent} is not installed (python tests/agents/install.py): left out", file=sys.stderr)
                    continue
                for case in cases(agent):
                    if setup not in case.setups or (options.turn and case.tool != (options.turn == "tool")):
                        continue
                    if options.only and not any(word in case.fault for word in options.only):
                        continue
                    result = rig.play(agent, setup, case)
                    print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
