"""The results as Markdown: every row beside its target, and whether it was met. Nothing here is measured.

A row that was not measured is left out; a figure that a gateway has none of is a dash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reasons import REASONS

from relay.bench.figures import QUIET, quiet
from relay.bench.measure import BenchError

_BEGIN, _END = "<!-- results -->", "<!-- /results -->"
_GATEWAYS = {
    "relay": "Relay",
    "nginx": "nginx",
    "go": "Go",
    "envoy": "Envoy",
    "portkey": "Portkey",
    "litellm": "LiteLLM",
}
_GUARDED = {
    "relay": "as it is",
    "sealed": "`store.encryption_env`: every event encrypted",
    "keyed": "`auth.mode: keys`",
}
_WORKERS = {"workers_1": "1 worker", "workers_2": "2 workers"}
_ERRORS_OF = (*_GATEWAYS, "uvicorn", "granian", *list(_GUARDED)[1:], *_WORKERS)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    target: str
    cells: dict[str, str]
    value: float | None = None
    """What the target is about; None where there is no target, or what it needs was not measured."""
    limit: float = 0.0
    at_least: bool = False
    why: str = ""
    """The reason where it is missed, in `reasons.REASONS`."""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def ratio(self) -> float:
        """How many times the target it is away; above 1 where it is missed."""
        assert self.value is not None
        above, below = (self.limit, self.value) if self.at_least else (self.value, self.limit)
        return above / below if below else float("inf")


def into(document: str, found: dict[str, Any]) -> str:
    """The document with its results made anew."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise BenchError(f"BENCHMARKS.md has lost its markers {_BEGIN} … {_END}; put them back")
    return f"{before}{_BEGIN}\n{tables(found)}\n{_END}{after}"


def lost(found: dict[str, Any]) -> bool:
    """Whether the relay lost, doubled or mixed up anything."""
    return any(errors for name, errors in _errors(found["rows"]) if name in (*_GUARDED, *_WORKERS))


def tables(found: dict[str, Any]) -> str:
    rows = list(_rows(found["rows"]))
    lines = [
        *(_where(found), "", _quiet(found), ""),
        *(f"| | target | {' | '.join(_GATEWAYS.values())} |", "|---" * (2 + len(_GATEWAYS)) + "|"),
    ]
    for row in rows:
        verdict = {True: " (met)", False: " (**missed**)", None: ""}[row.met]
        cells = [row.cells.get(name, "") + (verdict if name == "relay" else "") for name in _GATEWAYS]
        lines.append(f"| {row.what} | {row.target} | {' | '.join(cell or '–' for cell in cells)} |")
    lines += [
        "",
        *_behind(rows),
        *_workers(found["rows"]),
        *_asgi(found["rows"]),
        *_guarded(found["rows"]),
        _errors_line(found["rows"]),
        "",
        "How each was set up:",
        "",
    ]
    lines += [f"- **{_GATEWAYS[name]}.** {text}" for name, text in found["disclosed"].items() if name in _GATEWAYS]
    warned = [
        f"- {name}: {text}"
        for name, row in found["rows"].items()
        for text in row.get("warnings", [])
        if "not quiet" not in text  # told above, for all rows
    ]
    if warned:
        lines += ["", "Warnings of the run:", "", *warned]
    return "\n".join(lines)


def _where(found: dict[str, Any]) -> str:
    machine, cores, versions = found["machine"], found["cores"], found["versions"]
    peers = ", ".join(f"{_GATEWAYS.get(name, name)} {version}" for name, version in versions.items())
    return (
        f"Measured on {found['date']}: {machine['cores']} × {machine['cpu']}, {machine['system']}, Python "
        f"{machine['python']}, uvloop {machine['uvloop']}; relay {machine['relay']}, {peers}. What is measured is "
        f"bound to core {cores['target']}, the load to core {cores['load']}, the store to core {cores['store']}. "
        f"The run took {found['seconds'] / 60:.0f} min."
    )


def _quiet(found: dict[str, Any]) -> str:
    """Whether anything else used the machine; only figures of one run, and of a quiet machine, can be compared."""
    shares = {
        name: max((t["others_share"] for t in row["targets"].values()), default=0.0)
        for name, row in found["rows"].items()
        if "targets" in row
    }
    busy = {name: share for name, share in shares.items() if share > QUIET}
    load = f"Load average before the run: {found['load_average']:.2f}; "
    most = max(shares.values(), default=0.0)
    if quiet(found["load_average"], most):
        return load + f"others used {most:.0%} of a core at most: the machine was quiet."
    worst = ", ".join(f"{name} {share:.0%}" for name, share in sorted(busy.items(), key=lambda item: -item[1])[:5])
    told = (
        f"others used much of a core in {len(busy)} of {len(shares)} rows ({worst})" if busy else "nothing else since"
    )
    return load + told + ": **the machine was not quiet**, and delays and rates mean little."


def _behind(rows: list[Row]) -> list[str]:
    missed = [row for row in rows if row.met is False]
    if not missed:
        return ["Every target is met.", ""]
    lines = [
        "Where Relay is behind, and why:",
        "",
        "| | target | Relay | times the target | why, and what it would take |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(missed, key=lambda row: -row.ratio):
        reason = REASONS.get(row.why, "Not known; see `deploy/bench/reasons.py`.")
        lines.append(f"| {row.what} | {row.target} | {row.cells['relay']} | {row.ratio:.1f} | {reason} |")
    return [*lines, ""]


def _rows(rows: dict[str, Any]) -> Iterator[Row]:
    for streams, most in ((300, 2.5), (600, 2.0)):
        if targets := _targets(rows, f"cpu_{streams}", *(["cpu_litellm"] if streams == 300 else [])):
            yield _cpu(streams, most, targets, rows)
    yield from _store(rows)
    if targets := _targets(rows, "latency", "latency_litellm"):
        yield from _latency(targets, rows)
    if targets := _targets(rows, "first"):
        added = {name: t["added_first_event_ms"] for name, t in targets.items()}
        cells = {name: _times(value) for name, value in added.items()}
        value = added["relay"] and added["relay"]["p50"]
        what = "first event of single requests, over direct, ms: p50 / p99"
        yield Row(what, "p50 ≤ 1.2 ms", cells, value, 1.2, why="first")
    if targets := _targets(rows, "unpaced"):
        cells = {name: _throughput(target) for name, target in targets.items()}
        if (store := targets["relay"]["store_cpu_us_per_event"]) is not None:
            whole = targets["relay"]["cpu_us_per_event"] + store
            cells["relay"] += f" ({_rate(whole and 1e6 / whole)} with the store's)"
        what, value = "20 streams unpaced: events/s; events/s of its CPU", targets["relay"]["events_per_cpu_s"]
        yield Row(what, "≥ 50,000 a core", cells, value, 50_000, at_least=True, why="unpaced")
    if scale := {n: _targets(rows, f"scale_{n}") for n in (50, 200, 1000, 2000) if f"scale_{n}" in rows}:
        costs = {n: t["relay"]["cpu_us_per_event"] for n, t in scale.items()}
        what = f"CPU per event, µs, at {' / '.join(f'{n:,}' for n in costs)} live streams, 4,000 events/s in all"
        spread = max(costs.values()) / max(1.0, min(costs.values())) - 1
        cells = {"relay": f"{' / '.join(f'{cost:.0f}' for cost in costs.values())} ({spread:.0%} apart)"}
        yield Row(what, "within 25 %", cells, spread, 0.25, why="scale")
    yield from _begins(rows)
    yield from _bursts(rows)
    yield from _neighbours(rows)
    yield from _fidelity(rows)
    yield from _memory(rows)
    yield from _resume(rows)


def _fewer(name: str, rows: dict[str, Any], row: str = "cpu") -> str:
    """LiteLLM is measured with a load of its own."""
    return f" ({rows[f'{row}_litellm']['plan']['streams']} streams)" if name == "litellm" else ""


def _cpu(streams: int, most: float, targets: dict[str, Any], rows: dict[str, Any]) -> Row:
    cells = {}
    for name, target in targets.items():
        text = f"{target['cpu_us_per_event']:.0f}"
        if target["store_cpu_us_per_event"] is not None:
            text += f" + {target['store_cpu_us_per_event']:.0f} store"
        if target["cpu_share"] > 0.95:
            text += ", core full"
        cells[name] = text + _fewer(name, rows)
    value = None
    if "nginx" in targets and targets["nginx"]["cpu_us_per_event"]:
        value = targets["relay"]["cpu_us_per_event"] / targets["nginx"]["cpu_us_per_event"]
        cells["relay"] += f", {value:.1f} × nginx"
    what = f"CPU per event, µs, {streams} streams of 20 events/s"
    return Row(what, f"≤ {most:g} × nginx", cells, value, most, why="cpu")


def _store(rows: dict[str, Any]) -> Iterator[Row]:
    costs = {n: _targets(rows, f"cpu_{n}")["relay"]["store_cpu_us_per_event"] for n in (300, 600) if f"cpu_{n}" in rows}
    if costs and None not in costs.values():
        cells = {"relay": " / ".join(f"{cost:.0f}" for cost in costs.values())}
        what = f"CPU of the store per event, µs, {' / '.join(str(n) for n in costs)} streams of 20 events/s"
        yield Row(what, "≤ 15", cells, max(costs.values()), 15, why="store_cpu")


def _latency(targets: dict[str, Any], rows: dict[str, Any]) -> Iterator[Row]:
    streams = rows["latency"]["plan"]["streams"]
    cells = {name: _times(t["added_event_ms"]) + _fewer(name, rows, "latency") for name, t in targets.items()}
    yield Row(f"added per event over direct, ms: p50 / p99, {streams} streams (half of the relay's core)", "", cells)
    if "nginx" in targets:
        relay, nginx = targets["relay"]["event_ms"], targets["nginx"]["event_ms"]
        over = {key: relay[key] - nginx[key] for key in ("p50", "p99")}
        # Both count: the worse of the two decides.
        value = max(over["p50"], over["p99"] / 10)
        yield Row("the same over nginx", "p50 ≤ 1 ms, p99 ≤ 10 ms", {"relay": _times(over)}, value, 1, why="latency")


def _begins(rows: dict[str, Any]) -> Iterator[Row]:
    for row, how, limit in (("begin", "200 a second, connections kept", 0.6), ("cold", "300 at once, cold", 1.7)):
        if targets := _targets(rows, row):
            cells = {}
            for name, target in targets.items():
                cells[name] = f"{target['cpu_ms_per_stream']:.2f}"
                if target["store_cpu_ms_per_stream"] is not None:
                    cells[name] += f" + {target['store_cpu_ms_per_stream']:.2f} store"
            value = targets["relay"]["cpu_ms_per_stream"]
            what = f"CPU per stream begun and ended, ms, {how}"
            yield Row(what, f"≤ {limit}", cells, value, limit, why="begin")


def _bursts(rows: dict[str, Any]) -> Iterator[Row]:
    if targets := _targets(rows, "burst"):
        cells = {
            name: f"{t['errors']['refused']} refused, first events within {t['first_event_ms']['max']:,.0f} ms"
            for name, t in targets.items()
        }
        relay = targets["relay"]
        value = float("inf") if relay["errors"]["refused"] else relay["first_event_ms"]["max"]
        yield Row("1,000 connections at once", "none refused, ≤ 1 s", cells, value, 1000, why="burst")
    for row, how in (("beside", "at once"), ("beside_ramp", "within 3 s")):
        if targets := _targets(rows, row):
            added = {name: t["added_first_event_ms"] for name, t in targets.items()}
            cells = {name: _times(times) for name, times in added.items()}
            value = added["relay"]["p99"]
            what = f"600 streams begun {how} beside 100 that run: first event over direct, ms: p50 / p99"
            yield Row(what, "p99 ≤ 100 ms", cells, value, 100, why="burst")
            direct = rows[row]["targets"]["direct"]["meanwhile"]["burst"]
            late = {name: _less(t["meanwhile"]["burst"], direct) for name, t in targets.items()}
            cells = {name: _times(times) for name, times in late.items()}
            what = "the running streams' events meanwhile, over direct, ms: p50 / p99"
            value = late["relay"] and late["relay"]["p50"]
            yield Row(what, "p50 ≤ 2 ms", cells, value, 2, why="burst")


def _neighbours(rows: dict[str, Any]) -> Iterator[Row]:
    if targets := _targets(rows, "neighbours"):
        kinds = ("prompt", "events", "body")
        late = {name: [t["meanwhile"][kind] for kind in kinds] for name, t in targets.items()}
        cells = {name: " / ".join(f"{t['p99']:.0f}" if t else "–" for t in times) for name, times in late.items()}
        value = max((times["p99"] for times in late["relay"] if times), default=None)
        what = (
            "events of 100 small streams beside prompts of 100,000 tokens / events of 3 MB / requests of 31 MB, late "
            "by, ms: p99"
        )
        yield Row(what, "≤ 40", cells, value, 40, why="neighbours")


def _fidelity(rows: dict[str, Any]) -> Iterator[Row]:
    loads = [name for name in rows if name.startswith("fidelity_")]
    if not loads:
        return
    shares: dict[str, list[float]] = {}
    for load in loads:
        for name, target in _targets(rows, load).items():
            found = target["faithful"]
            shares.setdefault(name, []).append(found["equal"] / found["streams"])
    cells = {name: " / ".join(_percent(share) for share in values) for name, values in shares.items()}
    counts = " / ".join(f"{rows[load]['plan']['streams']:,}" for load in loads)
    what = f"streams that were equal to the upstream's byte by byte, %, of {counts} at 20 events/s"
    yield Row(what, "100", cells, min(shares["relay"]), 1.0, at_least=True, why="fidelity")


def _memory(rows: dict[str, Any]) -> Iterator[Row]:
    if targets := _targets(rows, "idle"):
        cells = {name: f"{target['memory']['rss'] / 1024:.0f}" for name, target in targets.items()}
        cells["relay"] += f" + {targets['relay']['memory']['store_rss'] / 1024:.0f} store"
        value = targets["relay"]["memory"]["rss"] / 1024
        yield Row("memory of a live idle stream, KiB", "≤ 32", cells, value, 32, why="idle")
    if "store" in rows:
        ratio = rows["store"]["ratio"]
        what = "bytes in the store / bytes of the frames"
        yield Row(what, "≤ 0.35", {"relay": f"{ratio:.2f}"}, ratio, 0.35, why="bytes")
    if targets := _targets(rows, "churn"):
        steps = targets["relay"]["memory"]
        ends = [step["memory"] for step in (steps[0], steps[-1])]
        cells = {"relay": ", ".join(f"{end['rss'] / 2**20:.0f} + {end['store_rss'] / 2**20:.0f} store" for end in ends)}
        what = f"memory, MiB, after {steps[0]['streams']:,} streams and after {steps[-1]['streams']:,}"
        yield Row(what, "flat (within 5 %)", cells, ends[1]["rss"] / ends[0]["rss"], 1.05, why="churn")


def _resume(rows: dict[str, Any]) -> Iterator[Row]:
    if targets := _targets(rows, "resume"):
        first, whole = targets["relay"]["first_byte_ms"]["p50"], targets["relay"]["whole_ms"]["p50"]
        what = "1,000 events read again, ms, medians: first byte; all"
        yield Row(
            what, "≤ 5; ≤ 25", {"relay": f"{first:.1f}; {whole:.1f}"}, max(first / 5, whole / 25), 1, why="resume"
        )
    for row, of in (("resume", "one stream"), ("resume_many", "100 streams"), ("fleet", "1,000 streams")):
        if targets := _targets(rows, row):
            together = targets["relay"]["together"]
            last, failed = together["whole_ms"]["max"] / 1000, together["errors"]
            what = f"1,000 readers at once, 1,000 events each, of {of}, s"
            cells = {"relay": f"{last:.2f}" + (f", {failed} cut" if failed else "")}
            yield Row(what, "≤ 3, nobody cut", cells, float("inf") if failed else last, 3, why="fleet")


def _workers(rows: dict[str, Any]) -> list[str]:
    if not {"workers_cpu", "workers_unpaced", "workers_shared"} <= rows.keys():
        return []
    lines = [
        "| the relay with | CPU per event, µs, 300 streams of 20 events/s | unpaced: events/s; events/s of its CPU | "
        "live connections of each worker |",
        "|---|---|---|---|",
    ]
    for name, label in _WORKERS.items():
        event, unpaced, shared = (
            rows[row]["targets"][name] for row in ("workers_cpu", "workers_unpaced", "workers_shared")
        )
        taken = ", ".join(str(count) for count in shared["connections"] or ())
        lines.append(f"| {label} | {event['cpu_us_per_event']:.0f} | {_throughput(unpaced)} | {taken} |")
    return [*lines, ""]


def _asgi(rows: dict[str, Any]) -> list[str]:
    if "asgi_cpu" not in rows or "asgi_unpaced" not in rows:
        return []
    lines = ["| the relay under | CPU per event, µs, 200 streams of 20 events/s | unpaced, events/s |", "|---|---|---|"]
    for name, target in rows["asgi_cpu"]["targets"].items():
        if name != "direct":
            per_s = rows["asgi_unpaced"]["targets"][name]["events_per_s"]
            label = "the server as shipped" if name == "relay" else name
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


def _throughput(target: dict[str, Any]) -> str:
    return f"{_rate(target['events_per_s'])}; {_rate(target['events_per_cpu_s'])}"


def _rate(value: float | None) -> str:
    """A dash where the CPU was less than the kernel counts."""
    return f"{value:,.0f}" if value else "–"


def _times(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['p50']:.2f} / {value['p99']:.2f}"


def _less(value: dict[str, float] | None, other: dict[str, float] | None) -> dict[str, float] | None:
    """None where one of them has seen no event."""
    return {key: value[key] - other[key] for key in value} if value and other else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


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
