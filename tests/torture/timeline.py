"""What was broken when, on the run's own clock. No I/O.

A fault is on record from the moment before it is made until it is lifted. What it is made on: `store`, `line 0` (from
replica 0 to the store), `replica 0`, `machine` (this machine was too busy for any of the times to hold).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

STORE = "store"
MACHINE = "machine"


def line(replica: int) -> str:
    return f"line {replica}"


def replica(number: int) -> str:
    return f"replica {number}"


@dataclass
class Record:
    """One fault as it was played. `ended` is infinite while it lasts."""

    kind: str
    target: str
    began: float
    ended: float = math.inf
    detail: str = ""
    loses: bool = False
    """It may have cost entries that the store had acknowledged."""
    harmless: bool = False
    """It must not cost anybody a lease, however long it lasts."""

    def __str__(self) -> str:
        until = "…" if math.isinf(self.ended) else f"{self.ended:.2f}"
        return f"{self.began:7.2f} to {until:>7}  {self.target:10} {self.kind}{' ' if self.detail else ''}{self.detail}"


Interval = tuple[float, float]


@dataclass
class Timeline:
    clock: Callable[[], float]
    records: list[Record] = field(default_factory=list)

    def begin(self, kind: str, target: str, *, detail: str = "", loses: bool = False) -> Record:
        record = Record(kind, target, self.clock(), detail=detail, loses=loses)
        self.records.append(record)
        return record

    def end(self, record: Record) -> None:
        record.ended = self.clock()

    def of(self, targets: Collection[str], since: float = 0.0, until: float = math.inf) -> list[Record]:
        """The faults on these targets that touch that time."""
        return [r for r in self.records if r.target in targets and r.began <= until and r.ended >= since]

    def broken(self, targets: Collection[str], since: float, until: float, *, grace: float = 0.0) -> list[Interval]:
        """When anything was broken, as intervals that do not touch; each lasts for `grace` longer."""
        found = [(max(r.began, since), min(r.ended + grace, until)) for r in self.of(targets, since - grace, until)]
        return merged(found)

    def clear(self, targets: Collection[str], since: float, until: float, *, grace: float) -> float:
        """The longest part of that time in which nothing was broken."""
        broken = self.broken(targets, since, until, grace=grace)
        return max((end - begin for begin, end in gaps(broken, since, until)), default=0.0)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    result: list[Interval] = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((begin, end))
    return result


def gaps(intervals: Iterable[Interval], since: float, until: float) -> list[Interval]:
    """The parts of that time that no interval covers."""
    result: list[Interval] = []
    at = since
    for begin, end in merged(intervals):
        if begin > at:
            result.append((at, min(begin, until)))
        at = max(at, end)
        if at >= until:
            return result
    if at < until:
        result.append((at, until))
    return result
