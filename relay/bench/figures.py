"""From the generator's answers to figures. Pure: what the table and the JSON say is decided here.

The figures of one target, as `summary` makes them; what was not measured is null:

    events, expected, streams   events that arrived, events that the accepted streams should have had, streams
    body_bytes                  of the answers' bodies
    errors                      by kind, see `relay.bench.stream.ERRORS`; all 0 in a run that counts
    samples                     the first few errors in words
    event_ms                    p50, p99, max from the upstream's write of an event to the generator's read
    first_event_ms              from a request to its first event
    first_byte_ms, whole_ms     from a request to the first byte of its body and to its end
    added_event_ms, added_first_event_ms      the same less that of `direct`, percentile by percentile
    events_per_s                over the window (for paced streams: while all of them run)
    cpu_us_per_event            CPU of the target's processes in the window, per event, without its store
    store_cpu_us_per_event      of the store in its process tree
    cpu_ms_per_stream           CPU of a stream's start and end: all of the run less its events at the price above
    store_cpu_ms_per_stream     of the store, where streams do nothing but begin and end; all CPU then counts here
    cpu_share, store_cpu_share  of one core, in the window
    events_per_cpu_s            events per second of the target's CPU
    load                        generator_share, upstream_share: their CPU, of one core
    others_share                CPU that anything else on the machine used meanwhile, in cores; the worst of the rounds
    meanwhile                   event_ms of the streams that ran beside, by what happened then (calm: nothing)
    faithful                    streams whose bytes were those that the upstream sent, of so many
    connections                 live ones of each process that takes them, the most first
    memory                      rss and store_rss per stream, or step by step, by the mode
    together                    of a resume: all readers at once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from relay.bench.stream import ERRORS

BUSY = 0.8
FULL = 0.95
QUIET = 0.05
"""Of a core: so much may others use of a machine that is quiet."""
IDLE = 0.5
"""Load average up to which a machine is called quiet."""
_TIMES = {
    "event_ms": "delay_us",
    "first_event_ms": "first_us",
    "first_byte_ms": "first_byte_us",
    "whole_ms": "whole_us",
}


def summary(mode: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """One target's rounds."""
    errors = Counter(dict.fromkeys(ERRORS, 0))
    for answer in answers:
        errors.update(answer["errors"])
    found: dict[str, Any] = {name: sum(a[name] for a in answers) for name in ("events", "expected", "streams")}
    found["body_bytes"] = sum(a["body_bytes"] for a in answers)
    found["errors"] = dict(errors)
    found["samples"] = [text for a in answers for text in a["samples"]][:5]
    for name, source in _TIMES.items():
        found[name] = _percentiles(a[source] for a in answers)
    found["added_event_ms"] = found["added_first_event_ms"] = None
    found |= _use(answers)
    found["memory"] = _memory(mode, answers)
    found["meanwhile"] = _meanwhile([a["meanwhile"] for a in answers if "meanwhile" in a])
    found["faithful"] = _faithful([a["faithful"] for a in answers if "faithful" in a])
    found["connections"] = next((a["connections"] for a in answers if a.get("connections")), None)
    found["others_share"] = max((a.get("others_share", 0.0) for a in answers), default=0.0)
    found["together"] = _together([a["together"] for a in answers if "together" in a])
    return found


def add_difference(target: dict[str, Any], direct: dict[str, Any]) -> None:
    """What the target adds to the delays of the upstream itself."""
    for name in ("event_ms", "first_event_ms"):
        if target[name] and direct[name]:
            target[f"added_{name}"] = {key: target[name][key] - direct[name][key] for key in target[name]}


def warnings(mode: str, targets: Mapping[str, dict[str, Any]], *, load_on_one: bool, target_on_one: bool) -> list[str]:
    """Why these figures may not say what they seem to. `…_on_one`: the load, or a target, is bound to one core."""
    found = []
    for name, target in targets.items():
        load = target["load"]
        shares = [load["generator_share"] or 0.0, load["upstream_share"] or 0.0]
        busy = sum(shares) if load_on_one else max(shares)
        if busy > BUSY and not (mode == "unpaced" and name == "direct"):
            found.append(
                f"{name}: the load itself used {busy:.0%} of its core, so it may be the limit. "
                "Use fewer streams or a lower rate, or give it a core of its own with --cpu-load"
            )
        if (
            mode == "paced"
            and target_on_one
            and (target["cpu_share"] or 0.0) + (target["store_cpu_share"] or 0.0) > FULL
        ):
            found.append(
                f"{name}: its core was full, so its delays are those of a queue. Use fewer streams or a lower rate"
            )
        if any(target["errors"].values()):
            found.append(f"{name}: errors. {'; '.join(target['samples'])}")
    if (others := max((target["others_share"] for target in targets.values()), default=0.0)) > QUIET:
        found.append(
            f"the machine was not quiet: others used {others:.0%} of a core. End what else runs, and measure again"
        )
    return found


def quiet(load_average: float, others: float) -> bool:
    """Whether nothing else used the machine: before the run, and in the worst of its jobs (in cores)."""
    return load_average <= IDLE and others <= QUIET


def _percentiles(histograms: Iterable[Mapping[str, int]]) -> dict[str, float] | None:
    """Of histograms in microseconds, in milliseconds."""
    counts: Counter[int] = Counter()
    for histogram in histograms:
        for micros, n in histogram.items():
            counts[int(micros)] += n
    total = counts.total()
    if not total:
        return None
    wanted = {"p50": 0.5 * total, "p99": 0.99 * total, "max": total}
    found: dict[str, float] = {}
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        for name, rank in wanted.items():
            if name not in found and seen >= rank:
                found[name] = value / 1000
    return found


def _use(answers: list[dict[str, Any]]) -> dict[str, Any]:
    if any("begun" in a for a in answers):
        return _begun([a["begun"] for a in answers])
    wholes = [a["whole"] for a in answers if a.get("whole")]
    steady = [a["steady"] for a in answers if a.get("steady")]
    windows = steady if len(steady) == len(wholes) else wholes
    events, seconds = _sum(windows, "events"), _sum(windows, "seconds")
    cpu, store = _sum(windows, "cpu"), _sum(windows, "store_cpu")
    per_event = _ratio(cpu, events)
    starts = None
    all_cpu = _sum(wholes, "cpu")
    streams = sum(a["streams"] for a in answers)
    if steady and streams and all_cpu is not None and per_event is not None:
        starts = max(0.0, (all_cpu - per_event * (_sum(wholes, "events") or 0)) / streams * 1000)
    return {
        "events_per_s": _ratio(events, seconds),
        "cpu_us_per_event": _times(1e6, per_event),
        "store_cpu_us_per_event": _times(1e6, _ratio(store, events)),
        "cpu_ms_per_stream": starts,
        "store_cpu_ms_per_stream": None,
        "events_per_cpu_s": _ratio(events, cpu),
        **_shares(windows),
    }


def _begun(windows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of windows in which streams do nothing but begin and end."""
    streams = _sum(windows, "streams")
    return {
        "events_per_s": _ratio(_sum(windows, "events"), _sum(windows, "seconds")),
        "cpu_us_per_event": None,
        "store_cpu_us_per_event": None,
        "cpu_ms_per_stream": _times(1e3, _ratio(_sum(windows, "cpu"), streams)),
        "store_cpu_ms_per_stream": _times(1e3, _ratio(_sum(windows, "store_cpu"), streams)),
        "events_per_cpu_s": None,
        **_shares(windows),
    }


def _shares(windows: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = _sum(windows, "seconds")
    return {
        "cpu_share": _ratio(_sum(windows, "cpu"), seconds),
        "store_cpu_share": _ratio(_sum(windows, "store_cpu"), seconds),
        "load": {
            "generator_share": _ratio(_sum(windows, "generator_cpu"), seconds),
            "upstream_share": _ratio(_sum(windows, "upstream_cpu"), seconds),
        },
    }


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _meanwhile(answers: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not answers:
        return None
    return {when: _percentiles(a[when] for a in answers) for when in answers[0]}


def _sum(windows: list[dict[str, Any]], name: str) -> float | None:
    values = [window[name] for window in windows]
    return sum(values) if values and None not in values else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _memory(mode: str, answers: list[dict[str, Any]]) -> Any:
    if mode == "idle":
        return _per_stream(answers)
    if mode == "churn":
        return answers[0]["steps"]
    return None


def _per_stream(answers: list[dict[str, Any]]) -> dict[str, float] | None:
    """Bytes for each live stream; the largest of the rounds, since a later one uses what an earlier one has freed."""
    found = []
    for answer in answers:
        before, live = answer["memory_before"], answer["memory_live"]
        if before and live and answer["streams_live"]:
            found.append({key: (live[key] - before[key]) / answer["streams_live"] for key in live})
    if not found:
        return None
    return {key: max(one[key] for one in found) for key in found[0]}


def _faithful(answers: list[dict[str, int]]) -> dict[str, int] | None:
    return {name: sum(a[name] for a in answers) for name in ("equal", "streams")} if answers else None


def _together(answers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The worst of the rounds."""
    return max(answers, key=lambda a: a["whole_ms"]["max"] if a["whole_ms"] else 0.0) if answers else None
