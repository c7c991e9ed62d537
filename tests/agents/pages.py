"""The agents' pages: the figures of a run of the rig, or of `tests.connect.outages` (lines of JSON, from standard
input), put between their marks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.agents.install import VERSIONS

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "agents"


def write(results: Sequence[dict[str, Any]]) -> None:
    for agent in VERSIONS:
        own = [result for result in results if result["agent"] == agent]
        _put(agent, "measured", table([result for result in own if "fault" in result]))
        _put(agent, "outages", outages([result for result in own if "outage" in result]))


def _put(agent: str, mark: str, lines: str) -> None:
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    path = FOLDER / f"{agent}.md"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    if lines and found:
        path.write_text(f"{before}{begin}\n{lines}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def outages(results: Sequence[dict[str, Any]]) -> str:
    """A row for each outage of the line between `relay connect` and its far relay; empty where there is none."""
    lines = ["| the line | calls | wasted | tool ran | asked again | the turn took |", "|---|---|---|---|---|---|"]
    for one in results:
        outcome = "" if one["outcome"] == "complete" else f"**{one['outcome']}**: "
        wasted = f"{one['waste']} of {one['made']}"
        counts = f"{one['calls']} | {wasted} | {one['tool_runs']}× | {one['asked_again']}×"
        lines.append(f"| {outcome}{one['outage']} | {counts} | {one['seconds']:.0f} s |")
    return "\n".join(lines) if results else ""


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each turn and fault, with a cell for each setup: what it came to, calls, and deltas wasted; empty where
    there is none."""
    if not results:
        return ""
    setups = [setup for setup in ("direct", "one relay", "two relays") if any(r["setup"] == setup for r in results)]
    lines = [f"| turn | cut | {' | '.join(setups)} |", "|---" * (len(setups) + 2) + "|"]
    known = dict.fromkeys((result["turn"], result["fault"]) for result in results)
    for turn, fault in sorted(known, key=lambda row: row[0]):
        cells = []
        for setup in setups:
            found = next((r for r in results if (r["turn"], r["fault"], r["setup"]) == (turn, fault, setup)), None)
            cells.append(_cell(found))
        lines.append(f"| {turn} | {fault} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "–"
    calls = "1 call" if result["calls"] == 1 else f"{result['calls']} calls"
    told = f"{calls}, {result['waste']} of {result['made']} wasted"
    told += f", {result['unstreamed']} without streaming" if result["unstreamed"] else ""
    runs = f", tool ran {result['tool_runs']}×" if result["turn"] == "tool" else ""
    outcome = "" if result["outcome"] == "complete" else f"**{result['outcome']}**: "
    return f"{outcome}{told}{runs}"


if __name__ == "__main__":
    write([json.loads(line) for line in sys.stdin if line.strip()])
