"""A run for people: a table on standard output, a bar on standard error while it lasts."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from relay.bench.figures import quiet

_BAR = 30


class Bar:
    """Progress on a terminal; silent where standard error is none."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def __call__(self, what: str, share: float) -> None:
        if self._on:
            full = min(_BAR, int(share * _BAR))
            width = shutil.get_terminal_size().columns
            line = f"[{'=' * full}{' ' * (_BAR - full)}] {what}"
            sys.stderr.write(f"\r{line[: width - 1]:{width - 1}}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def text(results: dict[str, Any]) -> str:
    """All that a run has found."""
    plan, targets = results["plan"], results["targets"]
    rows = [("", *targets)]
    for label, values in _rows(plan["mode"], targets):
        if any(value is not None for value in values):
            rows.append((label, *("-" if value is None else value for value in values)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_headline(plan, results), ""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines += [f"\nwarning: {warning}" for warning in results["warnings"]]
    return "\n".join(lines)


def _headline(plan: dict[str, Any], results: dict[str, Any]) -> str:
    streams, length, mode = plan["streams"], plan["length"], plan["mode"]
    what = {
        "paced": f"{streams:,} streams × {plan['rate']:g} events/s × {length:,} events",
        "unpaced": f"{streams:,} streams × {length:,} events, as fast as they come",
        "burst": f"{streams:,} connections at once, {length:,} events each",
        "first": f"{plan['repeats']:,} single requests, idle",
        "resume": f"streams of {length:,} events read again: {plan['repeats']} one by one, then {streams:,} at once",
        "idle": f"{streams:,} live streams without an event",
        "begin": f"{plan['total']:,} streams of {length:,} events, {plan['starts']:g} a second, connections kept",
        "cold": f"{streams:,} streams of {length:,} events at once on new connections, {plan['repeats']:,} times",
        "beside": f"{streams:,} streams at once beside {plan['running']:,} that run",
        "neighbours": f"{plan['running']:,} small streams beside {plan['repeats']:,} of each: prompts, events, bodies",
        "fidelity": f"{streams:,} streams × {plan['rate']:g} events/s × {length:,} events, byte by byte",
        "churn": f"{plan['total']:,} streams of {length:,} events, {streams:,} at a time",
    }[mode]
    machine = results.get("machine", {})
    cores = results.get("cores", {})
    where = (
        f"; target on core {cores['target']}, load on core {cores['load']}" if cores.get("target") is not None else ""
    )
    others = max((target["others_share"] for target in results["targets"].values()), default=0.0)
    load = results.get("load_average", 0.0)
    calm = "the machine was quiet" if quiet(load, others) else "the machine was not quiet"
    return (
        f"{what} ({plan['api']}; rounds: {plan['rounds']}{where})\n"
        f"{machine.get('cpu', '')}, {machine.get('cores', '')} cores, Python {machine.get('python', '')}\n"
        f"load average before {load:.2f}, others used {others:.0%} of a core: {calm}"
    )


def _rows(mode: str, targets: dict[str, dict[str, Any]]) -> list[tuple[str, list[str | None]]]:
    all_of = list(targets.values())

    def times(name: str, keys: tuple[str, ...] = ("p50", "p99", "max")) -> list[str | None]:
        return [None if not t[name] else " / ".join(f"{t[name][key]:.2f}" for key in keys) for t in all_of]

    def number(name: str, form: str) -> list[str | None]:
        return [None if t[name] is None else format(t[name], form) for t in all_of]

    rows: list[tuple[str, list[str | None]]] = [
        ("events that arrived / expected", [f"{t['events']:,} / {t['expected']:,}" for t in all_of]),
        ("errors", [_errors(t["errors"]) for t in all_of]),
        ("events/s", number("events_per_s", ",.0f")),
        ("event delay, ms: p50 / p99 / max", times("event_ms")),
        ("  added over direct", times("added_event_ms")),
        ("first event, ms: p50 / p99 / max", times("first_event_ms")),
        ("  added over direct", times("added_first_event_ms")),
    ]
    if mode == "resume":
        rows += [
            ("resumed, first byte, ms: p50 / p99 / max", times("first_byte_ms")),
            ("resumed, whole, ms: p50 / p99 / max", times("whole_ms")),
            ("  all at once, last one whole, ms", [_at_once(t) for t in all_of]),
        ]
    rows += [
        ("CPU per event, µs", number("cpu_us_per_event", ".1f")),
        ("  its store, µs", number("store_cpu_us_per_event", ".1f")),
        ("CPU per stream begun and ended, ms", number("cpu_ms_per_stream", ".2f")),
        ("  its store, ms", number("store_cpu_ms_per_stream", ".2f")),
        ("CPU, of one core", number("cpu_share", ".0%")),
        ("events per second of CPU", number("events_per_cpu_s", ",.0f")),
    ]
    for when in next((t["meanwhile"] for t in all_of if t["meanwhile"]), {}):
        rows.append((f"running streams' events, {when}, ms: p50 / p99 / max", _meanwhile(all_of, when)))
    rows.append(("streams that were equal to the upstream's", [_faithful(t["faithful"]) for t in all_of]))
    if mode == "idle":
        rows += [(f"{label}, KiB per live stream", _per_stream(all_of, key)) for label, key in _MEMORY]
        rows.append(("connections of each process", [_counts(t["connections"]) for t in all_of]))
    if mode == "churn":
        rows += [(f"{label}, MiB, by tenths", _steps(all_of, key)) for label, key in _MEMORY]
    rows.append(("load: generator / upstream CPU", [_load(t["load"]) for t in all_of]))
    return rows


_MEMORY = (("memory", "rss"), ("memory of its store", "store_rss"))


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in errors.items() if count) or "none"


def _at_once(target: dict[str, Any]) -> str | None:
    together = target["together"]
    return f"{together['whole_ms']['max']:.0f}" if together and together["whole_ms"] else None


def _meanwhile(targets: list[dict[str, Any]], key: str) -> list[str | None]:
    found = [(t["meanwhile"] or {}).get(key) for t in targets]
    return [None if not times else " / ".join(f"{times[name]:.2f}" for name in times) for times in found]


def _faithful(found: dict[str, int] | None) -> str | None:
    return None if found is None else f"{found['equal']:,} / {found['streams']:,}"


def _counts(found: list[int] | None) -> str | None:
    return " ".join(str(count) for count in found) if found else None


def _per_stream(targets: list[dict[str, Any]], key: str) -> list[str | None]:
    return [None if not t["memory"] else f"{t['memory'][key] / 1024:.1f}" for t in targets]


def _steps(targets: list[dict[str, Any]], key: str) -> list[str | None]:
    found: list[str | None] = []
    for target in targets:
        steps = [step["memory"] for step in target["memory"] or []]
        found.append(" ".join(f"{step[key] / 2**20:.0f}" for step in steps) if steps and all(steps) else None)
    return found


def _load(load: dict[str, float | None]) -> str | None:
    shares = [load["generator_share"], load["upstream_share"]]
    return None if shares[0] is None else " / ".join("-" if share is None else f"{share:.0%}" for share in shares)
