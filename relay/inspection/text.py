"""Streams as lines for a terminal, and as JSON.

What is printed may have been written by clients and upstreams, or by whoever can write to the store: nothing of it
moves the cursor or changes the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from relay.inspection.view import View
from relay.store.stories import Sight

_WIDTHS = {"stream": 25, "state": 12, "owner": 14, "upstream": 12, "model": 24, "age": 7, "events": 8, "ev/s": 7}
_HEAD = "".join(f"{name.upper():<{width}} " for name, width in _WIDTHS.items()) + "READERS"


def printable(text: object) -> str:
    """Without what a terminal obeys."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def printable_lines(text: str) -> str:
    """The same, with its line ends."""
    return "\n".join(printable(line.replace("\t", " ")) for line in text.split("\n"))


def as_json(view: View, sight: Sight, rate: float | None = None) -> dict[str, Any]:
    """What a stream is."""
    given, _, made = sight.usage.partition("/")
    return {
        "id": sight.stream,
        "state": sight.state,
        "owner": view.owner(sight),
        "key": sight.key or None,
        "request_id": sight.request or None,
        "api": sight.api,
        "upstream": sight.upstream,
        "model": sight.model,
        "replica": sight.replica,
        "created_at": sight.born,
        "ended_at": sight.ended or None,
        "age_seconds": round(age(sight), 3),
        "events": sight.events,
        "events_per_second": round(events_per_second(sight) if rate is None else rate, 2),
        "readers": dict(sight.readers),
        "readers_elsewhere_ever": sight.visits,
        "lease_left_seconds": None if sight.outcome else round(sight.lease_left, 3),
        "usage": {"input_tokens": int(given), "output_tokens": int(made)}
        if given.isdecimal() and made.isdecimal()
        else None,
    }


def age(sight: Sight) -> float:
    """How long it has run, or ran, in seconds."""
    return max((sight.ended or sight.seen) - sight.born, 0.0)


def events_per_second(sight: Sight) -> float:
    """Over its whole life."""
    return sight.events / max(age(sight), 0.001)


def table(view: View, sights: Sequence[Sight], rates: Mapping[str, float] | None = None) -> list[str]:
    """A heading and a line for each stream; `rates` are their events per second, where they were measured."""
    return [_HEAD, *(_row(view, sight, (rates or {}).get(sight.stream)) for sight in sights)]


def _row(view: View, sight: Sight, rate: float | None) -> str:
    cells = {
        "stream": sight.stream,
        "state": sight.state,
        "owner": view.owner(sight),
        "upstream": sight.upstream,
        "model": sight.model,
        "age": duration(age(sight)),
        "events": sight.events,
        "ev/s": f"{events_per_second(sight) if rate is None else rate:.1f}",
    }
    line = "".join(f"{_cut(printable(cells[name]), width):<{width}} " for name, width in _WIDTHS.items())
    return f"{line}{readers(sight)}".rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def readers(sight: Sight) -> str:
    """How many where, such as `1 on web-1, some on web-2`; a replica's random part is cut short."""
    told = (f"{'some' if number is None else number} on {short(replica)}" for replica, number in sight.readers.items())
    return ", ".join(told)


def short(replica: str) -> str:
    """A replica by its host and as much of the random part as tells two apart."""
    host, _, random = printable(replica).rpartition("-")
    return f"{host}-{random[:4]}" if host else random


def duration(seconds: float) -> str:
    """Such as `42s`, `3m07s`, `2h05m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def moment(at: float) -> str:
    """In UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def description(view: View, sight: Sight, story: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a stream is, and its story."""
    who = {
        "owner": view.owner(sight),
        "key": sight.key,
        "request": sight.request,
        "api": sight.api,
        "upstream": sight.upstream,
        "model": sight.model,
        "replica": sight.replica,
        "events": f"{sight.events} ({events_per_second(sight):.1f} a second, over {duration(age(sight))})",
        "tokens": sight.usage,
        "readers": "" if sight.outcome else readers(sight) or "none",
        "lease": "" if sight.outcome else f"{sight.lease_left:.1f} s left",
    }
    lines = [f"{sight.stream}  {sight.state}"]
    lines += [f"  {name:<9}{printable(value)}" for name, value in who.items() if value]
    lines.append("")
    return lines + [line_of_story(line) for line in story]


def line_of_story(line: Mapping[str, Any]) -> str:
    """`time  what  name=value …`"""
    more = {name: value for name, value in line.items() if name not in ("at", "what", "n")}
    rest = " ".join(f"{printable(name)}={printable(value)}" for name, value in more.items())
    return f"{moment(float(line['at']))}  {printable(line['what'])}  {rest}".rstrip()
