"""What a run's figures mean for how much to provide: the plan in deploy/README.md, made anew with each `make bench`.

A row that a plan needs and that was not measured leaves the plan as it is. Nothing here is measured.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

_BEGIN, _END = "<!-- capacity -->", "<!-- /capacity -->"
_NEEDED = ("cpu_300", "begin", "idle", "store")

BUSY = 0.6
"""Of a core: more leaves no room for bursts and drains."""
_EVENTS, _RATE, _BYTES = 600, 20, 310
"""Of a stream; a second; of an event as OpenAI sends it today for a token."""
_ID = 35
"""Bytes that the relay adds to an event: its id and the line for it."""
_HELD = 1200
"""Bytes of a live stream in the relay for each of its events so far, of 310 bytes."""
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_KIB, _GB = 1024, 1e9


@dataclass(frozen=True)
class Costs:
    """What one relay and its store were measured to need."""

    event: float
    """µs of the relay's CPU for an event, at 300 streams: with more an event costs less."""
    store_event: float
    begin: float
    """ms of CPU for a stream's begin and end, connections kept."""
    store_begin: float
    live: float
    """KiB of the relay for a live stream."""
    stored: float
    """Bytes in the store for a byte of the frames as clients get them."""


def costs(rows: dict[str, Any]) -> Costs | None:
    """None where a row is missing."""
    if not all(row in rows for row in _NEEDED):
        return None
    event, begin, idle = (rows[row]["targets"]["relay"] for row in ("cpu_300", "begin", "idle"))
    return Costs(
        event["cpu_us_per_event"],
        event["store_cpu_us_per_event"],
        begin["cpu_ms_per_stream"],
        begin["store_cpu_ms_per_stream"],
        idle["memory"]["rss"] / _KIB,
        rows["store"]["ratio"],
    )


def into(document: str, found: dict[str, Any]) -> str:
    """The document with its plan made anew, or as it is."""
    known = costs(found["rows"])
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if known is None or not (begin and end):
        return document
    return f"{before}{_BEGIN}\n{plan(known)}\n{_END}{after}"


def relay_cores(known: Costs, streams: float) -> float:
    return streams * _RATE * known.event / 1e6 / BUSY + streams / _seconds() * known.begin / 1e3 / BUSY


def store_cores(known: Costs, streams: float) -> float:
    return streams * _RATE * known.store_event / 1e6 / BUSY + streams / _seconds() * known.store_begin / 1e3 / BUSY


def streams_a_core(known: Costs) -> int:
    """Of the relay's, at 60 %."""
    return int(1 / relay_cores(known, 1))


def _seconds() -> float:
    return _EVENTS / _RATE


def _stored(known: Costs, streams: float, retention: float) -> float:
    return streams * (1 + retention / _seconds()) * _EVENTS * (_BYTES + _ID) * known.stored


def plan(known: Costs) -> str:
    held = known.live * _KIB + _EVENTS / 2 * _HELD
    rows = (
        ("events a second", "S·r", [_number(s * _RATE) for s in _SIZES]),
        ("streams begun a second", "S/T", [_number(s / _seconds()) for s in _SIZES]),
        (
            f"relay cores, {100 * BUSY:.0f} % busy",
            f"(S·r·{known.event:.0f} µs + S/T·{known.begin:.1f} ms) / {BUSY}",
            [_whole(relay_cores(known, s)) for s in _SIZES],
        ),
        ("relay memory", f"S·({known.live:.0f} KiB + E/2·1.2 KB)", [_gigabytes(s * held) for s in _SIZES]),
        (
            f"store cores, {100 * BUSY:.0f} % busy: a shard each",
            f"(S·r·{known.store_event:.0f} µs + S/T·{known.store_begin:.2f} ms) / {BUSY}",
            [_whole(store_cores(known, s)) for s in _SIZES],
        ),
        (
            "store memory, R = 1 h",
            f"S·(1 + R/T)·E·(b + {_ID})·{known.stored:.2f}",
            [_gigabytes(_stored(known, s, 3600)) for s in _SIZES],
        ),
        ("store memory, R = 1 min", "", [_gigabytes(_stored(known, s, 60)) for s in _SIZES]),
        ("bytes a second to clients", f"S·r·(b + {_ID})", [_bits(s * _RATE * (_BYTES + _ID) * 8) for s in _SIZES]),
    )
    lines = [f"| | | {' | '.join(f'{s:,}' for s in _SIZES)} |", "|---" * (2 + len(_SIZES)) + "|"]
    lines += [f"| {what} | {formula} | {' | '.join(cells)} |" for what, formula, cells in rows]
    return "\n".join([*lines, "", *_told(known)])


def _told(known: Costs) -> list[str]:
    """The columns' premises, and one of them worked out."""
    streams, busy = 10_000, f"{100 * BUSY:.0f} % busy"
    relays, stores = (_whole(cores(known, streams)) for cores in (relay_cores, store_cores))
    events, begun = streams * _RATE, streams / _seconds()
    premises = (
        f"for E = {_EVENTS}, r = {_RATE}, T = {_seconds():.0f} s, b = {_BYTES}, and streams half told on average. The "
        "costs are those of `BENCHMARKS.md` at 300 streams; more of them at once make an event cheaper."
    )
    example = (
        f"**{streams:,} streams, worked out.** {events:,} events a second at {known.event:.0f} µs are "
        f"{events * known.event / 1e6:.1f} cores, {begun:,.0f} streams begun a second at {known.begin:.1f} ms "
        f"{begun * known.begin / 1e3:.1f} more; {busy} they are {relays}: as many replicas, or workers on fewer "
        f"machines (`workers: auto`), each with {streams_a_core(known)} streams, and one replica more for drains. The "
        f"store's CPU is that of {stores} shards, which hold {_gigabytes(_stored(known, streams, 60))} together with "
        "R = 1 min; a rewrite of their append-only files copies what changes meanwhile: give them half as much again."
    )
    return [textwrap.fill(premises, 120), "", textwrap.fill(example, 120)]


def _whole(value: float) -> str:
    """Rounded up; three figures say enough."""
    rounded = int(value) + (value > int(value))
    if rounded >= 1000:
        rounded = round(rounded, -2)
    return f"{rounded:,}"


def _number(value: float) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _gigabytes(value: float) -> str:
    value /= _GB
    return f"{value / 1000:.1f} TB" if value >= 1000 else f"{value:.1f} GB" if value < 10 else f"{value:.0f} GB"


def _bits(value: float) -> str:
    return f"{value / 1e9:.1f} Gbit/s" if value >= 1e9 else f"{value / 1e6:.0f} Mbit/s"
