"""The results as Markdown: every row beside its target, and whether it was met. Nothing here is measured.

A row that was not measured is left out; a figure that a gateway has none of is a dash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.bench.measure import BenchError

_BEGIN, _END = "<!-- results -->", "<!-- /results -->"
_GATEWAYS = {"relay": "Relay", "nginx": "nginx", "portkey": "Portkey", "litellm": "LiteLLM"}
_GUARDED = {
    "relay": "as it is",
    "sealed": "`store.encryption_env`: every event encrypted",
    "keyed": "`auth.mode: keys`",
}
_ERRORS_OF = (*_GATEWAYS, "uvicorn", "granian", *list(_GUARDED)[1:])


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    target: str
    cells: dict[str, str]
    met: bool | None = None


def into(document: str, found: dict[str, Any]) -> str:
    """The document with its results made anew."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise BenchError(f"BENCHMARKS.md has lost its markers {_BEGIN} … {_END}; put them back")
    return f"{before}{_BEGIN}\n{tables(found)}\n{_END}{after}"


def lost(found: dict[str, Any]) -> bool:
    """Whether the relay lost, doubled or mixed up anything."""
    return any(errors for name, errors in _errors(found["rows"]) if name in _GUARDED)


def tables(found: dict[str, Any]) -> str:
    rows = list(_rows(found["rows"]))
    lines = [_where(found), "", f"| | target | {' | '.join(_GATEWAYS.values())} |", "|---|---|---|---|---|---|"]
    for row in rows:
        verdict = {True: " (met)", False: " (**missed**)", None: ""}[row.met]
        cells = [row.cells.get(name, "") + (verdict if name == "relay" else "") for name in _GATEWAYS]
        lines.append(f"| {row.what} | {row.target} | {' | '.join(cell or '–' for cell in cells)} |")
    lines += [
        "",
        *_asgi(found["rows"]),
        *_guarded(found["rows"]),
        _errors_line(found["rows"]),
        "",
        "How each was set up:",
        "",
    ]
    lines += [f"- **{_GATEWAYS[name]}.** {text}" for name, text in found["disclosed"].items() if name in _GATEWAYS]
    warned = [f"- {name}: {text}" for name, row in found["rows"].items() for text in row.get("warnings", [])]
    if warned:
        lines += ["", "Warnings of the run:", "", *warned]
    return "\n".join(lines)


def _where(found: dict[str, Any]) -> str:
    machine, cores, versions = found["machine"], found["cores"], found["versions"]
    peers = ", ".join(f"{_GATEWAYS.get(name, name)} {version}" for name, version in versions.items())
    return (
        f"Measured on {found['date']}: {machine['cores']} × {machine['cpu']}, {machine['system']}, Python "
        f"{machine['python']}, uvloop {machine['uvloop']}; relay {machine['relay']}, {peers}. What is measured is "
        f"bound to core {cores['target']}, the load to core {cores['load']}, the store to core {cores['store']}."
    )


def _rows(rows: dict[str, Any]) -> Iterator[Row]:
    for streams in (300, 600):
        if targets := _targets(rows, f"cpu_{streams}", *(["cpu_litellm"] if streams == 300 else [])):
            yield _cpu(streams, targets, rows)
    if targets := _targets(rows, "latency", "latency_litellm"):
        yield from _latency(targets, rows)
    if targets := _targets(rows, "first"):
        added = {name: t["added_first_event_ms"] for name, t in targets.items()}
        cells = {name: _times(value) for name, value in added.items()}
        yield Row(
            "first event of single requests, over direct, ms: p50 / p99", "p50 ≤ 2 ms", cells, _most(added, "p50", 2)
        )
    if targets := _targets(rows, "unpaced"):
        cells = {name: f"{t['events_per_s']:,.0f}; {t['events_per_cpu_s']:,.0f}" for name, t in targets.items()}
        if (store := targets["relay"]["store_cpu_us_per_event"]) is not None:
            cells["relay"] += f" ({1e6 / (targets['relay']['cpu_us_per_event'] + store):,.0f} with the store's)"
        met = targets["relay"]["events_per_cpu_s"] >= 50_000
        yield Row("20 streams unpaced: events/s; events/s of its CPU", "≥ 50,000 a core", cells, met)
    if scale := {n: _targets(rows, f"scale_{n}") for n in (50, 200, 1000, 2000) if f"scale_{n}" in rows}:
        costs = {n: t["relay"]["cpu_us_per_event"] for n, t in scale.items()}
        what = f"CPU per event, µs, at {' / '.join(f'{n:,}' for n in costs)} live streams, 4,000 events/s in all"
        spread = max(costs.values()) / min(costs.values()) - 1
        cells = {"relay": f"{' / '.join(f'{cost:.0f}' for cost in costs.values())} ({spread:.0%} apart)"}
        yield Row(what, "within 25 %", cells, spread <= 0.25)
    yield from _memory(rows)
    yield from _resume(rows)
    yield from _begins(rows)
    yield from _bursts(rows)


def _fewer(name: str, rows: dict[str, Any], row: str = "cpu") -> str:
    """LiteLLM is measured with a load of its own."""
    return f" ({rows[f'{row}_litellm']['plan']['streams']} streams)" if name == "litellm" else ""


def _cpu(streams: int, targets: dict[str, Any], rows: dict[str, Any]) -> Row:
    cells = {}
    for name, target in targets.items():
        text = f"{target['cpu_us_per_event']:.0f}"
        if target["store_cpu_us_per_event"] is not None:
            text += f" + {target['store_cpu_us_per_event']:.0f} store"
        if target["cpu_share"] > 0.95:
            text += ", core full"
        cells[name] = text + _fewer(name, rows)
    met = None
    if "nginx" in targets:
        met = targets["relay"]["cpu_us_per_event"] <= 3 * targets["nginx"]["cpu_us_per_event"]
    return Row(f"CPU per event, µs, {streams} streams of 20 events/s", "≤ 3 × nginx", cells, met)


def _latency(targets: dict[str, Any], rows: dict[str, Any]) -> Iterator[Row]:
    streams = rows["latency"]["plan"]["streams"]
    cells = {name: _times(t["added_event_ms"]) + _fewer(name, rows, "latency") for name, t in targets.items()}
    yield Row(f"added per event over direct, ms: p50 / p99, {streams} streams (half of the relay's core)", "", cells)
    if "nginx" in targets:
        relay, nginx = targets["relay"]["event_ms"], targets["nginx"]["event_ms"]
        over = {key: relay[key] - nginx[key] for key in ("p50", "p99")}
        met = over["p50"] <= 1 and over["p99"] <= 10
        yield Row("the same over nginx", "p50 ≤ 1 ms, p99 ≤ 10 ms", {"relay": _times(over)}, met)


def _begins(rows: dict[str, Any]) -> Iterator[Row]:
    for row, how, limit in (("begin", "200 a second, connections kept", 0.6), ("cold", "300 at once, cold", 1.7)):
        if targets := _targets(rows, row):
            cells = {}
            for name, target in targets.items():
                cells[name] = f"{target['cpu_ms_per_stream']:.2f}"
                if target["store_cpu_ms_per_stream"] is not None:
                    cells[name] += f" + {target['store_cpu_ms_per_stream']:.2f} store"
            met = targets["relay"]["cpu_ms_per_stream"] <= limit
            yield Row(f"CPU per stream begun and ended, ms, {how}", f"≤ {limit}", cells, met)


def _bursts(rows: dict[str, Any]) -> Iterator[Row]:
    if targets := _targets(rows, "burst"):
        cells = {
            name: f"{t['errors']['refused']} refused, first events within {t['first_event_ms']['max']:,.0f} ms"
            for name, t in targets.items()
        }
        relay = targets["relay"]
        met = not relay["errors"]["refused"] and relay["first_event_ms"]["max"] <= 1000
        yield Row("1,000 connections at once", "none refused, ≤ 1 s", cells, met)
    for row, how in (("beside", "at once"), ("beside_ramp", "within 3 s")):
        if targets := _targets(rows, row):
            cells = {name: _times(t["first_event_ms"]) for name, t in targets.items()}
            met = targets["relay"]["first_event_ms"]["p99"] <= 100
            what = f"600 streams begun {how} beside 100 that run: first event, ms: p50 / p99"
            yield Row(what, "p99 ≤ 100 ms", cells, met)
            cells = {name: _times(t["meanwhile"]["burst"]) for name, t in targets.items()}
            met = targets["relay"]["meanwhile"]["burst"]["p50"] <= 2
            yield Row("delay of the running streams' events meanwhile, ms: p50 / p99", "p50 ≤ 2 ms", cells, met)


def _memory(rows: dict[str, Any]) -> Iterator[Row]:
    if targets := _targets(rows, "idle"):
        bytes_each = targets["relay"]["memory"]["rss"]
        store = targets["relay"]["memory"]["store_rss"]
        cells = {name: f"{target['memory']['rss'] / 1024:.0f}" for name, target in targets.items()}
        cells["relay"] += f" + {store / 1024:.0f} store"
        yield Row("memory of a live idle stream, KiB", "≤ 32", cells, bytes_each <= 32 * 1024)
    if "store" in rows:
        ratio = rows["store"]["ratio"]
        yield Row("bytes in the store / bytes of the frames", "≤ 1.25", {"relay": f"{ratio:.2f}"}, ratio <= 1.25)
    if targets := _targets(rows, "churn"):
        steps = targets["relay"]["memory"]
        ends = [step["memory"] for step in (steps[0], steps[-1])]
        cells = {"relay": ", ".join(f"{end['rss'] / 2**20:.0f} + {end['store_rss'] / 2**20:.0f} store" for end in ends)}
        what = f"memory, MiB, after {steps[0]['streams']:,} streams and after {steps[-1]['streams']:,}"
        yield Row(what, "flat (within 5 %)", cells, ends[1]["rss"] <= 1.05 * ends[0]["rss"])


def _resume(rows: dict[str, Any]) -> Iterator[Row]:
    if targets := _targets(rows, "resume"):
        relay = targets["relay"]
        first, whole = relay["first_byte_ms"], relay["whole_ms"]
        cells = {"relay": f"{first['p50']:.1f}; {whole['p50']:.1f}"}
        met = first["p50"] <= 5 and whole["p50"] <= 25
        yield Row("1,000 events read again, ms, medians: first byte; all", "≤ 5; ≤ 25", cells, met)
    for row, of in (("resume", "one stream"), ("resume_many", "100 streams"), ("fleet", "1,000 streams")):
        if targets := _targets(rows, row):
            together = targets["relay"]["together"]
            last, failed = together["whole_ms"]["max"] / 1000, together["errors"]
            what = f"1,000 readers at once, 1,000 events each, of {of}, s"
            cells = {"relay": f"{last:.2f}" + (f", {failed} cut" if failed else "")}
            yield Row(what, "≤ 3, nobody cut", cells, last <= 3 and not failed)


def _asgi(rows: dict[str, Any]) -> list[str]:
    if "asgi_cpu" not in rows or "asgi_unpaced" not in rows:
        return []
    lines = ["| the relay under | CPU per event, µs, 200 streams of 20 events/s | unpaced, events/s |", "|---|---|---|"]
    for name, target in rows["asgi_cpu"]["targets"].items():
        if name != "direct":
            per_s = rows["asgi_unpaced"]["targets"][name]["events_per_s"]
            label = "Hypercorn (as shipped)" if name == "relay" else name
            lines.append(f"| {label} | {target['cpu_us_per_event']:.0f} | {per_s:,.0f} |")
    return [*lines, ""]


def _guarded(rows: dict[str, Any]) -> list[str]:
    if "guarded_cpu" not in rows or "guarded_churn" not in rows:
        return []
    lines = ["| the relay | CPU per event, µs, 200 streams of 20 events/s | CPU per stream of 1 event, ms |"]
    lines.append("|---|---|---|")
    for name, label in _GUARDED.items():
        event, short = (rows[row]["targets"][name] for row in ("guarded_cpu", "guarded_churn"))
        stream = short["cpu_us_per_event"] * short["events"] / short["streams"] / 1000
        lines.append(f"| {label} | {event['cpu_us_per_event']:.0f} | {stream:.2f} |")
    return [*lines, ""]


def _targets(rows: dict[str, Any], *names: str) -> dict[str, Any]:
    """The gateways of these rows together; none where the first was not measured."""
    if names[0] not in rows:
        return {}
    found: dict[str, Any] = {}
    for name in names:
        found |= rows.get(name, {}).get("targets", {})
    return {name: target for name, target in found.items() if name in _GATEWAYS}


def _times(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['p50']:.2f} / {value['p99']:.2f}"


def _most(values: dict[str, Any], key: str, limit: float) -> bool | None:
    return None if values["relay"] is None else values["relay"][key] <= limit


def _errors(rows: dict[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    for row in rows.values():
        targets = row.get("targets", {"relay": row})
        for name, target in targets.items():
            if name in _ERRORS_OF:
                yield name, {kind: count for kind, count in target["errors"].items() if count}


def _errors_line(rows: dict[str, Any]) -> str:
    counted: dict[str, int] = {}
    for name, errors in _errors(rows):
        counted[name] = counted.get(name, 0) + sum(errors.values())
    wrong = ", ".join(f"{_GATEWAYS.get(name, name)} {count:,}" for name, count in counted.items() if count)
    checked = sum(t["events"] for row in rows.values() for t in row.get("targets", {}).values())
    return (
        f"Every event is checked by its number ({checked:,} of them here, those read straight from the upstream among "
        f"them). Missing, doubled, out of order, foreign, badly ended, refused or asked for twice: {wrong or 'none'}."
    )
