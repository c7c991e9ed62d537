"""What a run says: figures for people and one line of JSON, and for a violation everything that led to it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.torture.run import Outcome

_SHOWN = 6
_LOG_LINES = 12


def figures(outcome: Outcome) -> dict[str, Any]:
    evidence = outcome.evidence
    by_prefix: dict[str, dict[str, int]] = {"resume": {}, "refused": {}, "fault": {}, "stop": {}}
    for name, number in sorted(outcome.counts.items()):
        prefix, _, rest = name.partition(" ")
        if prefix in by_prefix:
            by_prefix[prefix][rest] = number
    ends = Counter(end for stream in evidence.streams.values() for end in {e for _, _, e in stream.ends})
    longest, whose = outcome.longest
    options = outcome.options
    return {
        "topology": options.topology,
        "workers": options.workers,
        "seed": options.seed,
        "seconds": round(evidence.finished, 1),
        "streams": len(evidence.streams),
        "clients": len(outcome.histories),
        "events": outcome.events,
        "upstream_calls": len(evidence.calls),
        "cuts": outcome.counts.get("cuts", 0),
        "resumes": by_prefix["resume"],
        "refusals": by_prefix["refused"],
        "stops": by_prefix["stop"],
        "ends": dict(ends),
        "clients_ends": outcome.ends,
        "faults": by_prefix["fault"],
        "longest_wait_seconds": round(longest, 2),
        "longest_wait_of": whose,
        "processes_grew_by": {
            "MiB": outcome.counts.get("grown MiB", 0),
            "descriptors": outcome.counts.get("grown descriptors", 0),
        },
        "refused_for_good": len(evidence.refusals),
        "busy_moments": sum(1 for record in evidence.timeline.records if record.target == "machine"),
        "violations": dict(Counter(found.kind for found in outcome.found)),
    }


def table(shown: dict[str, Any]) -> str:
    lines = []
    for name, value in shown.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in sorted(value.items())) or "none"
        lines.append(f"  {name.replace('_', ' '):22} {value}")
    return "\n".join(lines)


def failures(outcome: Outcome, most: int = _SHOWN) -> str:
    """The first violations, each with its client's history, and what had been done by then."""
    if not outcome.found:
        return ""
    options = outcome.options
    again = f"make torture SEED={options.seed} SECONDS={options.seconds:g} TOPOLOGY={options.topology}"
    again += f" WORKERS={options.workers}"
    parts = [f"{len(outcome.found)} violations. To play the same again: {again}"]
    parts.append("what was broken, in seconds of the run:")
    parts += [f"  {record}" for record in outcome.evidence.timeline.records]
    shown: Counter[str] = Counter()
    for found in outcome.found:
        shown[found.kind] += 1
        if sum(shown.values()) > most and shown[found.kind] > 1:
            continue
        parts.append(f"\n=== {found.kind} at {found.at:.2f}, client {found.client or 'none'}\n{found.detail}")
        parts += _history(outcome, found.client)
    return "\n".join(parts)


def _history(outcome: Outcome, client: str) -> list[str]:
    name = client.partition("/")[0]
    if name.startswith("key-"):
        name = f"s{name.split('-')[1]}"
    elif name.startswith("agent-"):
        name = f"s{name.split('-')[2]}"
    elif name.startswith("client-"):
        name = name.split("-")[1]
    parts: list[str] = []
    for other, history in outcome.histories.items():
        if other == name:
            parts += [f"--- history of {other}", *history]
            stream = _stream_of(history)
            if stream is not None:
                call = outcome.evidence.call(stream)
                parts.append(f"--- {stream}: {call}")
                for number, log in enumerate(outcome.relay_logs):
                    said = [line for line in log.splitlines() if stream in line][-_LOG_LINES:]
                    parts += [f"--- log of replica {number}", *said] if said else []
    return parts


def _stream_of(history: list[str]) -> str | None:
    for line in history:
        for word in line.split():
            if word.startswith("st_"):
                return word.partition(".")[0]
    return None


def as_json(shown: dict[str, Any]) -> str:
    return json.dumps(shown, separators=(",", ":"))
