"""What the exercises have shown, as a table: in the terminal, and in deploy/CLUSTER.md with versions and date."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.load import Load
from tests.image.engine import ROOT

PAGE = ROOT / "deploy" / "CLUSTER.md"
_MARK = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)


@dataclass
class Row:
    name: str
    streams: int = 0
    whole: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    """Streams whose end was told to be another, by its code."""
    lost: int = 0
    doubled: int = 0
    other: int = 0
    """Wrong in another way, or without an end."""
    unlogged: int = 0
    """Begun while the store was away."""
    resumes: int = 0
    extra: int = 0
    """Upstream calls beyond one a stream."""
    pooled: int = 0
    single: int = 0
    """Refusals, of clients with a pool of connections and of those without."""
    seconds: float = 0
    text: str = ""
    right: bool = True
    details: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, load: Load, calls: int, seconds: float, told: tuple[str, ...] = ()) -> Row:
        """`told`: what becomes of streams whose replica is killed. Its connections cannot but be refused, either."""
        ends = load.ends
        # A POST that was sent and not answered may have gone upstream before; the client asked again.
        unanswered = sum(text.startswith("new: ") and not text[5].isdigit() for text in load.all_refused)
        lost = sum(text.startswith("lost") for text in load.wrong)
        doubled = sum(text.startswith("doubled") for text in load.wrong)
        open_ends = ends["none"] - len(load.wrong)
        ended = Counter({end: count for end, count in ends.items() if end not in ("done", "none")})
        row = cls(
            name,
            streams=load.begun,
            whole=ends["done"],
            ended=ended,
            lost=lost,
            doubled=doubled,
            other=len(load.wrong) - lost - doubled + max(0, open_ends),
            unlogged=sum(not seen.logged for seen in load.streams),
            resumes=sum(seen.resumes for seen in load.streams),
            extra=max(0, calls - load.begun - unanswered),
            pooled=len(load.refused[True]),
            single=len(load.refused[False]),
            seconds=seconds,
            details=[*load.wrong[:5], *load.refused[True][:5], *load.refused[False][:5]],
        )
        row.right = (
            not (row.lost or row.doubled or row.other or row.extra)
            and (not (row.pooled or row.single) or "producer_lost" in told)
            and set(ended) <= set(told)
            and row.streams > 0
        )
        return row

    @property
    def told(self) -> str:
        if self.text:
            return self.text
        ends = "".join(f", {count} told {end}" for end, count in sorted(self.ended.items()))
        text = (
            f"{self.streams} streams: {self.whole} whole{ends}, {self.lost} lost, {self.doubled} doubled,"
            f" {self.other} otherwise wrong, {self.unlogged} without a log, {self.resumes} resumes,"
            f" {self.extra} extra upstream calls,"
            f" refusals: {self.pooled} pooled, {self.single} not, {self.seconds:.0f} s"
        )
        return text if self.right else "\n          ".join([f"{text} — WRONG", *self.details])

    @property
    def line(self) -> str:
        if self.text:
            return f"| {self.name} | {self.text} |"
        ends = ", ".join(f"{count} `{end}`" for end, count in sorted(self.ended.items())) or "–"
        cells = [self.streams, self.whole, ends, self.lost, self.doubled, self.extra, self.resumes, self.unlogged]
        cells += [self.pooled, self.single, f"{self.seconds:.0f} s"]
        return f"| {self.name} | {' | '.join(map(str, cells))} |"


def table(rows: list[Row]) -> str:
    """Two: the exercises under load, and what was looked at beside them."""
    loaded = [row.line for row in rows if not row.text]
    looked = [row.line for row in rows if row.text]
    head = "| exercise | streams | whole | end told | lost | doubled | extra upstream calls | resumes | without a log |"
    head += " refused, pooled | refused, not pooled | time |\n|---|" + "---|" * 11
    return "\n".join([head, *loaded, "", "| looked at | found |\n|---|---|", *looked])


def write(rows: list[Row], versions: dict[str, str], machine: str) -> None:
    """Into the page, whose words stay."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    told = ", ".join(f"{name} {version.removeprefix('v')}" for name, version in versions.items())
    text = f"{day}, {machine}: {told}.\n\n{table(rows)}\n"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_MARK.sub(lambda mark: mark[1] + text + mark[2], page), encoding="utf-8")


def machine() -> str:
    cores = len(re.findall(r"^processor\s*:", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    return f"{cores} cores, {memory} GiB"
